import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from tutelage.distillation import losses
from tutelage.errors import InputError
from tutelage.networks.detr import DetrHead, SmallDETR
from tutelage.networks.roi import box_iou, decode_boxes, encode_boxes, nms, roi_align
from tutelage.networks.segmenter import Segmenter
from tutelage.networks.unet import UNet, widen_input


def test_unet_heads_conditions_and_context():
    torch.manual_seed(0)
    unet = UNet(3, {"heatmap": 21, "mask": 1}).eval()
    maps = unet(torch.randn(2, 3, 16, 24))
    assert {name: tuple(m.shape) for name, m in maps.items()} == {
        "heatmap": (2, 21, 16, 24),
        "mask": (2, 1, 16, 24),
    }
    assert {name.split(".")[0] for name, _ in unet.named_parameters()} == {"encoder", "decoder", "heads"}
    with pytest.raises(InputError, match="halved 2 times"):
        unet(torch.zeros(1, 3, 18, 16))

    images, cond, context = torch.randn(2, 1, 8, 8), torch.randn(2, 5), torch.randn(2, 3, 6)
    told = UNet(1, 2, norm="group", cond_dim=5, context_dim=6).eval()
    assert told(images, cond, context).shape == (2, 2, 8, 8)
    assert not torch.allclose(told(images, cond, context), told(images, cond + 1, context))
    mask = torch.tensor([[1, 0, 1]] * 2)
    other = context.clone()
    other[:, 1] = 5
    assert torch.equal(told(images, cond, context, mask), told(images, cond, other, mask))
    assert not torch.allclose(told(images, cond, context), told(images, cond, other))
    with pytest.raises(InputError, match="unknown norm"):
        UNet(1, 1, norm="layer")


def test_unet_learns_to_copy_an_edge_map():
    torch.manual_seed(0)
    unet = UNet(1, 1, widths=(8, 16))
    images = torch.rand(16, 1, 8, 8)
    wanted = (images > 0.5).float()
    optimizer = torch.optim.Adam(unet.parameters(), 1e-2)
    for _ in range(60):
        optimizer.zero_grad()
        torch.nn.functional.binary_cross_entropy_with_logits(unet(images), wanted).backward()
        optimizer.step()
    assert float(((unet.eval()(images) > 0) == (wanted > 0)).float().mean()) > 0.95


def test_widened_convolution_starts_blind_to_the_new_channels():
    torch.manual_seed(0)
    old = torch.nn.Conv2d(4, 6, 3, padding=1)
    wide = widen_input(old, 4)
    x, more = torch.randn(2, 4, 5, 5), torch.randn(2, 4, 5, 5)
    assert torch.allclose(wide(torch.cat([x, more], 1)), old(x), atol=1e-6)
    wide(torch.cat([x, more], 1)).sum().backward()
    assert float(wide.weight.grad[:, 4:].abs().min()) > 0
    with pytest.raises(InputError, match="grouped"):
        widen_input(torch.nn.Conv2d(4, 4, 3, groups=2), 1)


def test_segmenter_labels_every_pixel_from_any_maps():
    torch.manual_seed(0)
    backbone = torch.nn.Conv2d(3, 8, 4, 4)
    one = Segmenter(backbone, [8], 5)
    assert one(torch.randn(2, 3, 16, 12)).shape == (2, 5, 16, 12)
    pool = torch.nn.functional.avg_pool2d
    two = Segmenter(backbone, [8, 8], 5, maps=lambda net, x: (net(x), pool(net(x), 2)))
    assert two(torch.randn(2, 3, 16, 16)).shape == (2, 5, 16, 16)
    with pytest.raises(InputError, match="1 maps for a head of 2"):
        Segmenter(backbone, [8, 8], 5)(torch.randn(2, 3, 16, 16))


def test_detr_output_feeds_the_set_loss_and_learns():
    torch.manual_seed(0)
    net = SmallDETR(1, 2, dim=32, query_grid=3)
    images = torch.zeros(4, 1, 16, 16)
    images[:2, :, 2:8, 2:8], images[2:, :, 8:14, 8:14] = 1, -1
    labels = [torch.tensor([0])] * 2 + [torch.tensor([1])] * 2
    boxes = [torch.tensor([[5, 5, 6, 6]]) / 16] * 2 + [torch.tensor([[11, 11, 6, 6]]) / 16] * 2
    optimizer = torch.optim.Adam(net.parameters(), 3e-3)
    trace = []
    for _ in range(60):
        optimizer.zero_grad()
        out = net(images)
        loss = losses.set_loss(out["logits"], out["boxes"], labels, boxes)
        loss.backward()
        optimizer.step()
        trace.append(float(loss.detach()))
    assert out["logits"].shape == (4, 9, 3) and out["boxes"].shape == (4, 9, 4)
    assert trace[-1] < trace[0] / 2


def test_detr_queries_start_at_their_anchors():
    torch.manual_seed(0)
    boxes = DetrHead(4, 1, dim=16, query_grid=2)(torch.randn(1, 4, 3, 5)).boxes[0]
    wanted = torch.tensor([[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])
    assert torch.allclose(boxes[:, :2], wanted, atol=1e-5) and torch.allclose(boxes[:, 2:], torch.tensor(0.5), atol=1e-5)


def test_masked_domain_queries_leave_the_detections_as_they_are():
    torch.manual_seed(0)
    plain = DetrHead(4, 2, dim=16).eval()
    extra = DetrHead(4, 2, dim=16, extra_tokens=1).eval()
    read = DetrHead(4, 2, dim=16, extra_tokens=1, read_extra=True).eval()
    state = {n: v for n, v in plain.state_dict().items() if "_token" not in n}
    for net in (extra, read):
        net.load_state_dict(state, strict=False)
    maps = torch.randn(2, 4, 4, 4)
    a, b, c = plain(maps), extra(maps), read(maps)
    assert torch.allclose(a.logits, b.logits, atol=1e-5) and torch.allclose(a.boxes, b.boxes, atol=1e-5)
    assert not torch.allclose(a.logits, c.logits, atol=1e-5)
    assert b.encoder[0].shape == (2, 17, 16) and b.decoder[-1].shape == (2, 17, 16) and b.extra == 1
    # the domain query reads the ordinary tokens
    assert not torch.allclose(b.encoder[-1][0, 0], b.encoder[-1][1, 0], atol=1e-5)


def test_detr_dropout_varies_in_training_alone():
    torch.manual_seed(0)
    head, maps = DetrHead(4, 2, dim=16, dropout=0.3), torch.randn(1, 4, 4, 4)
    assert not torch.equal(head(maps).logits, head(maps).logits)
    head.eval()
    assert torch.equal(head(maps).logits, head(maps).logits)


def test_roi_align_on_maps_worked_out_by_hand():
    ramp = torch.arange(6.0)[None, None, :, None] * 10 + torch.arange(8.0)
    maps = torch.stack([ramp[0], -ramp[0]])
    # on a linear map the mean of a bin is the value at its centre; pixel (i, j) has its centre at (i + .5, j + .5)
    found = roi_align(maps, torch.tensor([[1.0, 1, 5, 5], [2, 1, 4, 3]]), torch.tensor([0, 1]), 2)
    assert found.shape == (2, 1, 2, 2)
    assert torch.allclose(found[0, 0], torch.tensor([[16.5, 18.5], [36.5, 38.5]]))
    assert torch.allclose(found[1, 0], -torch.tensor([[12.0, 13], [22, 23]]))
    # one sample a bin at its centre, half of the image's scale
    half = roi_align(maps, torch.tensor([[2.0, 2, 10, 10]]), torch.tensor([0]), (1, 2), scale=0.5, samples=1)
    assert torch.allclose(half[0, 0], torch.tensor([[26.5, 28.5]]), atol=1e-5)
    # far outside counts nothing
    assert not roi_align(maps, torch.tensor([[40.0, 40, 50, 50]]), torch.tensor([0]), 2).any()
    box = torch.tensor([[1.0, 1, 5, 5]], requires_grad=True)
    maps.requires_grad_(True)
    roi_align(maps, box, torch.tensor([0]), 2).sum().backward()
    assert float(maps.grad[0].sum()) == pytest.approx(4, abs=1e-5) and not maps.grad[1].any()


_BOX = st.tuples(*[st.floats(0, 50)] * 2, *[st.floats(1, 40)] * 2)


@settings(deadline=None, max_examples=40)
@given(_BOX, _BOX)
def test_box_coder_inverts_and_overlap_is_symmetric(first, second):
    a, b = (torch.tensor([[x, y, x + w, y + h]], dtype=torch.float64) for x, y, w, h in (first, second))
    back = decode_boxes(encode_boxes(a, b, (10, 10, 5, 5)), b, (10, 10, 5, 5))
    assert torch.allclose(back, a, atol=1e-6)
    overlap = float(box_iou(a, b))
    assert overlap == pytest.approx(float(box_iou(b, a))) and 0 <= overlap <= 1
    assert float(box_iou(a, a)) == pytest.approx(1)


def test_overlap_and_suppression_by_hand():
    boxes = torch.tensor([[0.0, 0, 4, 4], [1, 0, 5, 4], [10, 10, 12, 12], [0, 0, 4, 4]])
    assert float(box_iou(boxes[:1], boxes[1:2])) == pytest.approx(12 / 20)
    assert float(box_iou(boxes[:1], boxes[2:3])) == 0 and float(box_iou(torch.zeros(1, 4), torch.zeros(1, 4))) == 0
    scores = torch.tensor([0.5, 0.9, 0.3, 0.5])
    assert nms(boxes, scores).tolist() == [1, 2]
    assert nms(boxes, scores, classes=torch.tensor([0, 1, 0, 0])).tolist() == [1, 0, 2]
    assert nms(boxes, scores, threshold=0.6).tolist() == [1, 0, 2]
    assert nms(torch.zeros(0, 4), torch.zeros(0)).tolist() == []
    grown = decode_boxes(torch.tensor([[0.0, 0, 99, 0]]), boxes[:1])
    assert float(grown[0, 2] - grown[0, 0]) == pytest.approx(4 * 1000 / 16, rel=1e-5) and math.isfinite(float(grown.sum()))
