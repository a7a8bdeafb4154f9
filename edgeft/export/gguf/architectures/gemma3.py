"""The text model of Gemma3ForConditionalGeneration, as llama.cpp's `gemma3`; what sees images is left out."""

from dataclasses import replace

from edgeft.export.gguf.architectures import gemma3_text

ARCHITECTURE = replace(
    gemma3_text.ARCHITECTURE,
    section="text_config",
    renames=(
        (r"^(language_model\.model|model\.language_model)\.", "model."),
        (r"^language_model\.lm_head\.", "lm_head."),
    ),
    ignored=(
        *gemma3_text.ARCHITECTURE.ignored,
        "vision_tower.*",
        "multi_modal_projector.*",
        "model.vision_tower.*",
        "model.multi_modal_projector.*",
    ),
)
