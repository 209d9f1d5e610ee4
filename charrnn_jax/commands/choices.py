"""Settings for drawing text, which `charrnn sample` takes as flags or in an interactive session."""

from typing import Any

from charrnn_jax.commands.arguments import natural, real

# Arguments of `generation.choice.make_rules`: (type, default, help).
CHOICES: dict[str, tuple[Any, Any, str]] = {
    "temperature": (real, 1.0, "0: always the most likely character; 1: the model's distribution"),
    "top_k": (natural, 0, "draw only from the N most likely characters; 0: from all"),
    "top_p": (real, 1.0, "draw only from the most likely characters with this total probability"),
    "min_p": (real, 0.0, "draw only characters at least this likely, relative to the likeliest"),
    "no_repeat": (natural, 0, "never write the same N characters in a row twice; 0: off"),
    "allow": (str, "", "write only these characters"),
    "forbid": (str, "", "never write these characters"),
    "pattern": (str, "", "regular expression that the text after the prompt must match"),
}
