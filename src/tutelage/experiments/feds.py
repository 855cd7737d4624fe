"""FEDS on the left parts of two photographs: a heavy codec teaches a light one; their right parts are coded."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

from tutelage.distillation.data import TensorData
from tutelage.distillation.job import TrainingJob, TrainingSettings
from tutelage.distillation.method import Method
from tutelage.distillation.tasks.metrics import psnr
from tutelage.distillation.trainer import train
from tutelage.experiments import Experiment, Figure, Metric, better, equal
from tutelage.experiments._classification import SELECTION
from tutelage.experiments._photos import photo, random_crops
from tutelage.seeds import torch_rng
from tutelage.systems._backbone import count_parameters
from tutelage.systems._toy import build_with_seed
from tutelage.systems.feds import FEDS, ImageCodec, RateDistortion, channel_information

LOSS = "held-out rate + distortion, % of the light codec's alone"
QUALITY, RATE, SIZE = "PSNR, dB", "bits a pixel", "parameters, % of the teacher's"
EXCESS = "bytes of a stream beyond 102 % of its likelihood, the most"
FAULTS = "faults"
TIME = "CPU time to encode and decode, % of the teacher's"
TRADE_OFF, TRAINED_PART = 0.0483, 0.6


def measure(network: ImageCodec, images: Tensor, trade_off: float = TRADE_OFF) -> dict[str, float]:
    """``loss``, ``rate`` (bits a pixel) and ``psnr`` (of all pixels together) of held-out crops."""
    with torch.no_grad():
        output = network.eval()(images)
    rate = float((output["bits_y"] + output["bits_z"]).mean()) / (images.shape[2] * images.shape[3])
    error = float((output["logits"] - images).square().mean())
    quality = float(psnr(output["logits"][None].flatten(2, 3), images[None].flatten(2, 3)))
    return {"loss": rate + trade_off * 255**2 * error, "rate": rate, "psnr": quality}


@torch.no_grad()
def quality_without(network: ImageCodec, images: Tensor, channels: Tensor) -> float:
    """PSNR in dB where these channels of y are not coded: their predicted means stand for them."""
    output = network.eval()(images)
    coded = (output["latent"] - output["mean"]).round() + output["mean"]
    coded[:, channels] = output["mean"][:, channels]
    return float(psnr(network.synthesise(coded)[None].flatten(2, 3), images[None].flatten(2, 3)))


def coding(network: ImageCodec, images: Tensor) -> tuple[float, float, int]:
    """(CPU seconds, most bytes beyond 102 % of the likelihood, crops decoded otherwise than the network sees them)."""
    begin = time.process_time()
    streams = [network.encode(image) for image in images]
    decoded = [network.decode(data) for data in streams]
    seconds = time.process_time() - begin
    excess, wrong = [], 0
    for image, data, result in zip(images, streams, decoded, strict=True):
        with torch.no_grad():
            output = network(image[None])
        excess.append(len(data) - 1.02 * (output["bits_y"] + output["bits_z"]).item() / 8)
        wrong += not torch.equal(result, output["logits"][0])
    return seconds, max(excess), wrong


def run(seed: int, smoke: bool, all_arms: bool) -> Mapping[str, Figure]:
    """Equal steps and batches for every light codec; the held-out crops are the same for all seeds, but others for those on
    which settings were chosen."""
    photos = [photo(name) for name in ("china.jpg", "flower.jpg")]
    edge, rng, test_rng = int(TRAINED_PART * photos[0].shape[2]), torch_rng(seed, "crops"), torch_rng(seed in SELECTION, "held out")
    data = TensorData(torch.cat([random_crops(image[..., :edge], 8 if smoke else 256, 32, rng) for image in photos]))
    test = torch.cat([random_crops(image[..., edge:], 1 if smoke else 32, 32, test_rng) for image in photos])

    def learn(network: ImageCodec, teacher: ImageCodec | None, method: Method, steps: int) -> ImageCodec:
        settings = TrainingSettings(
            steps=2 if smoke else steps, batch_size=8, lr=2e-3, clip=1.0, schedule="constant", seed=seed, channels_last=True
        )
        found = train(TrainingJob(network, teacher, method, data, settings)).student
        assert isinstance(found, ImageCodec)
        return found.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]

    heavy_options = ImageCodec.options("small-teacher") | {"attention": False}
    light_options = ImageCodec.options("small-student")

    def heavy() -> ImageCodec:
        return build_with_seed(lambda: ImageCodec(**heavy_options), seed, "teacher")

    def light() -> ImageCodec:
        return build_with_seed(lambda: ImageCodec(**light_options), seed, "student")

    teacher = learn(heavy(), None, RateDistortion(trade_off=TRADE_OFF), 700)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    methods: dict[str, Method] = {
        "alone": RateDistortion(trade_off=TRADE_OFF),
        "features, fine-tune": FEDS(trade_off=TRADE_OFF, shares=(0.8, 0.0, 0.2)),
        "three phases": FEDS(trade_off=TRADE_OFF),
    }
    if all_arms:
        methods["three phases, uniform weights"] = FEDS(trade_off=TRADE_OFF, selection="uniform")
        methods["three phases, top half"] = FEDS(trade_off=TRADE_OFF, selection="top")
    learned = {name: learn(light(), None if name == "alone" else teacher, each, 400) for name, each in methods.items()}
    found = {name: measure(network, test) for name, network in {"teacher": teacher, **learned}.items()}
    arms: dict[str, dict[str, float]] = {
        name: {LOSS: 100 * it["loss"] / found["alone"]["loss"], QUALITY: it["psnr"], RATE: it["rate"]} for name, it in found.items()
    }
    student = learned["three phases"]
    seconds, excess, wrong = coding(student, test[:16])
    changed = sum(not torch.equal(before[name], value) for name, value in teacher.state_dict().items())
    arms["three phases"] |= {
        SIZE: 100 * count_parameters(student) / count_parameters(teacher),
        EXCESS: excess,
        FAULTS: changed + len(student.state_dict().keys() ^ light().state_dict().keys()) + wrong,
        TIME: 100 * seconds / coding(teacher, test[:16])[0],
    }
    with torch.no_grad():
        output = teacher(data.inputs)
    order = channel_information(output["latent"], output["mean"], output["scale"]).argsort(descending=True)
    half = len(order) // 2
    arms["teacher, low half of H dropped"] = {QUALITY: quality_without(teacher, test, order[half:])}
    arms["teacher, high half of H dropped"] = {QUALITY: quality_without(teacher, test, order[:half])}
    if all_arms and not smoke:
        for trade_off in (0.013, 0.025):
            other = learn(heavy(), None, RateDistortion(trade_off=trade_off), 700)
            distilled = learn(light(), other, FEDS(trade_off=trade_off), 400)
            for name, network in (("teacher", other), ("three phases", distilled)):
                it = measure(network, test, trade_off)
                arms[f"{name}, lambda {trade_off}"] = {QUALITY: it["psnr"], RATE: it["rate"]}
    return arms


experiment = Experiment(
    metric=LOSS,
    higher_is_better=False,
    further_metrics=[
        Metric(QUALITY),
        Metric(RATE, higher_is_better=False),
        Metric(SIZE, higher_is_better=False),
        Metric(EXCESS, higher_is_better=False),
        Metric(FAULTS, higher_is_better=False),
        Metric(TIME, higher_is_better=False),
    ],
    claims=[
        better("teacher, low half of H dropped", "teacher, high half of H dropped", metric=QUALITY),
        better("three phases", "alone"),
        better("three phases", 40, metric=SIZE),
        better("three phases", 64, metric=EXCESS),
        equal("three phases", 0, 0.5, metric=FAULTS),
    ],
    run=run,
    limits="'Faults' counts tensors of the teacher that changed, names left over in the export, and crops that a stream gives "
    "back otherwise than the network sees them. Crops of 32x32 from parts of two photographs, 400 steps for the light codec and "
    "700 for the heavy one: all are far from converged, so a BD-rate gap of 1 % as the paper reports it (0.55 to 1.24 % on "
    "Kodak, Tecnick and CLIC, with 63 % fewer parameters and 73 % less time) cannot be resolved. On the "
    "seeds for selection, weights of 1 and 0.1 in place of beta1 lambda 255^2 and beta2 lambda 255^2 gained nothing, nor did 32 "
    "crops in place of 512; and the entropy phase added nothing to the features.",
)
