"""Transformers models of a few thousand parameters with random weights, saved as folders with a tokenizer made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers as t

WORDS = (
    "what color is the a photo of circle star red green blue yes no question answer : ? . that not it with one word or short phrase"
)
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 8,
    "patch_size": 4,
}
TEXT = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
TEMPLATE = (
    "{% for m in messages %}{% for c in m.content %}{% if c.type == 'image' %}<image> {% else %}{{ c.text }} {% endif %}"
    "{% endfor %}{% endfor %}answer :"
)


def tokenizer(*special: str, **names: str) -> Any:
    """Words between blanks; ``special`` ones first."""
    import tokenizers

    known = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[BOS]", "[EOS]", *special, *WORDS.split()]
    inner = tokenizers.Tokenizer(tokenizers.models.WordLevel({w: i for i, w in enumerate(known)}, "[UNK]"))
    inner.normalizer = tokenizers.normalizers.Lowercase()
    inner.pre_tokenizer = tokenizers.pre_tokenizers.Sequence(
        [tokenizers.pre_tokenizers.WhitespaceSplit(), tokenizers.pre_tokenizers.Split("?", "isolated")]
    )
    given = {"pad_token": "[PAD]", "unk_token": "[UNK]"} | names
    if special:
        given["additional_special_tokens"] = list(special)
    return t.PreTrainedTokenizerFast(tokenizer_object=inner, **given)


def bert() -> Any:
    """[CLS] words [SEP], as BERT's."""
    import tokenizers

    made = tokenizer(cls_token="[CLS]", sep_token="[SEP]")
    made._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def saved(folder: Path, kind: Any, config: Any, processor: Any, spread: float = 0.3) -> Path:
    """A model of ``kind`` with wide random weights, so that answers differ."""
    torch.manual_seed(0)
    model = kind(config)
    for parameter in model.parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=spread)
        elif parameter.ndim == 1:
            torch.nn.init.uniform_(parameter, 0.1, 0.5)  # above 0, so that nothing ends in a dead rectifier
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def image_processor(kind: Any, size: int = 8, **settings: Any) -> Any:
    return kind(**{"size": {"height": size, "width": size}, **settings})


def vilt(folder: Path) -> Path:
    names = {0: "red", 1: "green", 2: "blue", 3: "yes", 4: "no"}
    words = bert()
    config = t.ViltConfig(
        **TEXT, vocab_size=len(words), image_size=8, patch_size=4, num_images=-1, id2label=names, max_position_embeddings=24
    )
    config.label2id = {name: i for i, name in names.items()}
    pictures = t.ViltImageProcessor(size={"shortest_edge": 8}, size_divisor=4)
    return saved(folder, t.ViltForQuestionAnswering, config, t.ViltProcessor(pictures, words))


def blip(folder: Path) -> Path:
    words = bert()
    text = TEXT | {"vocab_size": len(words), "encoder_hidden_size": 8, "max_position_embeddings": 24, "projection_dim": 8}
    text |= {"bos_token_id": 4, "pad_token_id": 0, "sep_token_id": 3, "eos_token_id": 3}
    config = t.BlipConfig(text_config=text, vision_config=VISION, projection_dim=8, image_text_hidden_size=8)
    return saved(folder, t.BlipForQuestionAnswering, config, t.BlipProcessor(image_processor(t.BlipImageProcessor), words))


def blip2(folder: Path, encoder: bool = False, instruct: bool = False) -> Path:
    words = tokenizer("<image>", bos_token="[BOS]", eos_token="[EOS]")
    words.image_token = "<image>"
    ends = {"bos_token_id": 4, "eos_token_id": 5, "pad_token_id": 0, "vocab_size": len(words)}
    if encoder:
        language = t.T5Config(
            d_model=8, d_kv=4, d_ff=8, num_layers=1, num_decoder_layers=1, num_heads=2, decoder_start_token_id=0, **ends
        )
    elif instruct:
        language = t.LlamaConfig(**TEXT, max_position_embeddings=64, **ends)
    else:
        language = t.OPTConfig(
            hidden_size=8,
            ffn_dim=8,
            num_hidden_layers=1,
            num_attention_heads=2,
            word_embed_proj_dim=8,
            max_position_embeddings=64,
            **ends,
        )
    querying = TEXT | {
        "encoder_hidden_size": 8,
        "vocab_size": len(words),
        "cross_attention_frequency": 1,
        "max_position_embeddings": 24,
    }
    own = {
        "vision_config": VISION,
        "qformer_config": querying,
        "text_config": language.to_dict(),
        "num_query_tokens": 2,
        "image_token_index": 6,
        "image_token_id": 6,
    }
    pictures = image_processor(t.BlipImageProcessor)
    if instruct:
        processor = t.InstructBlipProcessor(pictures, words, bert(), num_query_tokens=2)
        return saved(folder, t.InstructBlipForConditionalGeneration, t.InstructBlipConfig(**own), processor)
    return saved(
        folder, t.Blip2ForConditionalGeneration, t.Blip2Config(**own), t.Blip2Processor(pictures, words, num_query_tokens=2)
    )


def llava(folder: Path) -> Path:
    words = tokenizer("<image>", bos_token="[BOS]", eos_token="[EOS]")
    words.image_token = "<image>"
    language = t.LlamaConfig(
        **TEXT, vocab_size=len(words), bos_token_id=4, eos_token_id=5, pad_token_id=0, max_position_embeddings=64
    )
    vision = t.CLIPVisionConfig(**VISION, projection_dim=8)
    config = t.LlavaConfig(vision_config=vision, text_config=language, image_token_index=6, vision_feature_layer=-1)
    pictures = t.CLIPImageProcessor(size={"shortest_edge": 8}, crop_size={"height": 8, "width": 8})
    processor = t.LlavaProcessor(
        pictures,
        words,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=TEMPLATE,
    )
    return saved(folder, t.LlavaForConditionalGeneration, config, processor)


def clip_words() -> Any:
    """Words, then an end, as CLIP's."""
    import tokenizers

    made = tokenizer(bos_token="[BOS]", eos_token="[EOS]")
    made._tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="[BOS] $A [EOS]", special_tokens=[("[BOS]", 4), ("[EOS]", 5)]
    )
    made.model_max_length = 16
    return made


def text_of(words: Any) -> dict[str, Any]:
    return TEXT | {
        "vocab_size": len(words),
        "max_position_embeddings": 16,
        "bos_token_id": 4,
        "eos_token_id": 5,
        "pad_token_id": 0,
        "projection_dim": 8,
    }


def clip_images(size: int = 8) -> Any:
    return t.CLIPImageProcessor(size={"height": size, "width": size}, do_center_crop=False)


def clip(folder: Path) -> Path:
    words = clip_words()
    config = t.CLIPConfig(text_config=text_of(words), vision_config=VISION | {"projection_dim": 8}, projection_dim=8)
    return saved(folder, t.CLIPModel, config, t.CLIPProcessor(clip_images(), words))


def siglip(folder: Path) -> Path:
    words = clip_words()
    text = TEXT | {"vocab_size": len(words), "max_position_embeddings": 16, "projection_size": 8}
    config = t.SiglipConfig(text_config=text, vision_config=VISION)
    return saved(folder, t.SiglipModel, config, t.SiglipProcessor(image_processor(t.SiglipImageProcessor), words))


def owl(folder: Path, second: bool = False) -> Path:
    words = clip_words()
    vision = VISION | {"image_size": 12}
    if second:
        config = t.Owlv2Config(text_config=text_of(words), vision_config=vision, projection_dim=8)
        processor = t.Owlv2Processor(t.Owlv2ImageProcessor(size={"height": 12, "width": 12}), words)
        return saved(folder, t.Owlv2ForObjectDetection, config, processor)
    config = t.OwlViTConfig(text_config=text_of(words), vision_config=vision, projection_dim=8)
    pictures = t.OwlViTImageProcessor(size={"height": 12, "width": 12}, do_center_crop=False)
    return saved(folder, t.OwlViTForObjectDetection, config, t.OwlViTProcessor(pictures, words))


def grounding_dino(folder: Path) -> Path:
    words = bert()
    backbone = t.SwinConfig(
        image_size=32,
        patch_size=2,
        embed_dim=4,
        depths=[1, 1, 1],
        num_heads=[1, 1, 2],
        window_size=2,
        out_features=["stage2", "stage3"],
    )
    text = t.BertConfig(**TEXT, vocab_size=len(words), max_position_embeddings=24, type_vocab_size=2)
    config = t.GroundingDinoConfig(
        backbone_config=backbone,
        text_config=text.to_dict(),
        num_queries=6,
        d_model=32,
        encoder_layers=1,
        encoder_ffn_dim=8,
        encoder_attention_heads=2,
        decoder_layers=2,
        decoder_ffn_dim=8,
        decoder_attention_heads=2,
        num_feature_levels=3,
        encoder_n_points=2,
        decoder_n_points=2,
        max_text_len=24,
        dropout=0.0,
    )
    pictures = t.GroundingDinoImageProcessor(size={"height": 32, "width": 32}, do_pad=False)
    return saved(folder, t.GroundingDinoForObjectDetection, config, t.GroundingDinoProcessor(pictures, words), spread=0.1)


def clipseg(folder: Path) -> Path:
    words = clip_words()
    vision = VISION | {"num_hidden_layers": 2}
    config = t.CLIPSegConfig(
        text_config=text_of(words),
        vision_config=vision,
        projection_dim=8,
        reduce_dim=8,
        extract_layers=[0, 1],
        decoder_num_attention_heads=2,
        decoder_intermediate_size=8,
    )
    processor = t.CLIPSegProcessor(t.ViTImageProcessor(size={"height": 8, "width": 8}), words)
    return saved(folder, t.CLIPSegForImageSegmentation, config, processor)


def sam(folder: Path) -> Path:
    vision = {
        "hidden_size": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "image_size": 16,
        "patch_size": 4,
        "output_channels": 8,
        "mlp_dim": 8,
        "window_size": 2,
        "num_pos_feats": 4,
        "global_attn_indexes": [0],
    }
    prompts = {"hidden_size": 8, "image_size": 16, "patch_size": 4, "mask_input_channels": 4}
    masks = {
        "hidden_size": 8,
        "mlp_dim": 8,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "iou_head_hidden_dim": 8,
        "attention_downsample_rate": 1,
    }
    config = t.SamConfig(vision_config=vision, prompt_encoder_config=prompts, mask_decoder_config=masks)
    pictures = t.SamImageProcessor(
        size={"longest_edge": 16},
        pad_size={"height": 16, "width": 16},
        mask_size={"longest_edge": 16},
        mask_pad_size={"height": 16, "width": 16},
    )
    return saved(folder, t.SamModel, config, t.SamProcessor(pictures))


def dpt(folder: Path) -> Path:
    config = t.DPTConfig(
        hidden_size=8,
        intermediate_size=8,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        backbone_out_indices=[0, 1, 2, 3],
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4,
        head_in_index=-1,
    )
    return saved(folder, t.DPTForDepthEstimation, config, t.DPTImageProcessor(size={"height": 16, "width": 16}))


def depth_anything(folder: Path) -> Path:
    backbone = t.Dinov2Config(
        hidden_size=8,
        mlp_ratio=1,
        num_hidden_layers=4,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        out_indices=[1, 2, 3, 4],
        apply_layernorm=True,
        reshape_hidden_states=False,
    )
    config = t.DepthAnythingConfig(
        backbone_config=backbone,
        patch_size=4,
        reassemble_hidden_size=8,
        neck_hidden_sizes=[4, 4, 4, 4],
        fusion_hidden_size=4,
        head_hidden_size=4,
    )
    return saved(folder, t.DepthAnythingForDepthEstimation, config, t.DPTImageProcessor(size={"height": 16, "width": 16}))
