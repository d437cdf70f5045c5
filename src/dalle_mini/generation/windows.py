"""How many tokens a pass of the decoder draws: a table of what was measured.

Nothing is measured at run time, so that the load of a machine cannot choose another rounding.
"""

from __future__ import annotations

from dalle_mini.models.token_model import TokenModelConfig
from dalle_mini.settings import GenerationSettings

# The quickest window by the rows of a call on one device, up to the number that is named; for more rows it is 1,
# sequential decoding. `benchmarks/passes.py --table` measures it. Guidance makes drafts come true less often, so calls
# with unconditional rows have windows of their own. The size of a model is the `cache_width` of its config; a larger
# model is not in the table, and neither is a kind of device that was not measured.
SMALL = 4096  # the shipped model has 2,048, DALL·E mini 24,576
PLAIN, GUIDED = {1: 28, 2: 16, 4: 12, 8: 6}, {2: 16}
WINDOWS = {"cpu": {SMALL: (PLAIN, GUIDED)}}
UNMEASURED = 16  # where parallel decoding is asked for and the table has none


def window_of(settings: GenerationSettings, config: TokenModelConfig, platform: str, rows: int) -> int:
    """The tokens that a pass draws of each image.

    Args:
      settings: resolved; its `decode`, its `window` and whether there is guidance count.
      platform: of the devices, such as "cpu".
      rows: that a device decodes in a call, with the unconditional ones.
    """
    if settings.decode == "sequential":
        return 1
    found = _found(settings.guided, config, platform, rows)
    if settings.decode == "auto" and found == 1:
        return 1
    window = settings.window or (found if found > 1 else UNMEASURED)
    return min(window, config.image_length)


def widest(settings: GenerationSettings, config: TokenModelConfig, platform: str) -> int:
    """The largest of `window_of`, whatever the rows: what memory is reckoned with before they are known."""
    return window_of(settings, config, platform, 1 + settings.guided)


def _found(is_guided: bool, config: TokenModelConfig, platform: str, rows: int) -> int:
    for width, windows in WINDOWS.get(platform, {}).items():
        if config.cache_width <= width:
            return next((window for most, window in windows[is_guided].items() if rows <= most), 1)
    return 1
