"""A training that runs out of a card's memory -> what to change, in the order in which it costs."""

from typing import Any

import torch


def train_or_advise(trainer: Any, settings: dict[str, Any]) -> None:
    """Run the trainer; where the card's memory ends, say what needs less.

    Args:
        trainer: MONAI's.
        settings: the card of the run: batch_size, accumulation_steps, checkpointing, max_frames and image_size are
            read.

    Raises:
        MemoryError: out of memory. The run is not tried again: half of its state is on the card.
    """
    try:
        trainer.run()
    except torch.OutOfMemoryError as error:
        raise MemoryError(advice(settings, str(error).split(". ")[0])) from error


def advice(settings: dict[str, Any], reason: str) -> str:
    """The ladder, as lines of text: knobs of finetune.yaml with values for this run, what each saves and costs."""
    batch, steps, frames = (settings[name] for name in ("batch_size", "accumulation_steps", "max_frames"))
    size = settings["image_size"]
    smaller = max(batch // 2, 1)
    recomputed = f"now {settings['checkpointing']}"
    ladder = [
        (
            f"--batch_size {smaller} --accumulation_steps {steps * -(-batch // smaller)}",
            "activations of half the sequences; the weights stay the same, so does the work"
            if batch > 1
            else "nothing more: a batch has one sequence already",
        ),
        (
            "--checkpointing \"{'kind': 'chunks', 'frames': 8}\"",
            "all activations of the encoder but those of 8 frames; a third more work",
        ),
        (
            "--checkpointing selective, or blocks",
            f"half of the activations, or most; up to a third more work ({recomputed})",
        ),
        ("--amp True", "nearly half of the activations, on a card; quicker, gradients rounded"),
        (f"--max_frames {max(frames // 2, 1)}", "half of the activations; half of the sequence is not seen"),
        (
            f"--image_size {size // 2}",
            "three quarters of the activations; small vessels are lost; a multiple of the patch",
        ),
        ("configs/cache_features.yaml, then configs/train.yaml", "everything of the encoder: it is not trained at all"),
    ]
    lines = [f"{number}. {knobs}: saves {effect}." for number, (knobs, effect) in enumerate(ladder, start=1)]
    return "\n".join([f"{reason}. What needs less, in this order:", *lines])
