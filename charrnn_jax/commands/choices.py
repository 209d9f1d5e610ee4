"""How text is drawn, as the user of `charrnn sample` may choose it: by flags, or while it runs."""

from typing import Any

from charrnn_jax.commands.arguments import natural, real

# Settings of `generation.choice.make_rules`: (type, default, what they do).
CHOICES: dict[str, tuple[Any, Any, str]] = {
    "temperature": (real, 1.0, "0: always the likeliest character; 1: the model's distribution"),
    "top_k": (natural, 0, "only the N likeliest characters; 0: all"),
    "top_p": (real, 1.0, "only the likeliest characters that have this probability together"),
    "min_p": (real, 0.0, "only characters at least this likely, next to the likeliest one"),
    "no_repeat": (natural, 0, "no N characters in a row are written twice; 0: no such rule"),
    "allow": (str, "", "only these characters are written"),
    "forbid": (str, "", "these characters are not written"),
    "pattern": (str, "", "a regular expression that the text after the prompt matches"),
}
