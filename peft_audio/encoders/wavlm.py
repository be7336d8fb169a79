"""Describe WavLM (Chen et al., 2021, arXiv 2110.13900)."""

from peft_audio.encoders.base import Arithmetic
from peft_audio.encoders.conv_transformer import ConvTransformerFamily

# WavLM's attention passes the weights of its linear layers to one torch function. It never calls the layers, so neither
# LoRA nor quantisation of them has an effect.
WAVLM = ConvTransformerFamily(
    "wavlm",
    "wavlm",
    "WavLM",
    lora_reaches_attention=False,
    unquantized_linear=("q_proj", "k_proj", "v_proj", "out_proj", "gru_rel_pos_linear"),
    only_arithmetic=Arithmetic("eager", False, "transformers has no other for this family"),
)
