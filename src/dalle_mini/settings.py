"""The settings of one generation, checked before anything heavy is imported or loaded."""

import dataclasses
import numbers
from collections.abc import Sequence
from typing import Any

from dalle_mini.errors import UserError, shown

DTYPES = ("float32", "bfloat16", "float16", "int8")  # of generation
DECODE = ("auto", "sequential", "parallel")
SAMPLERS = ("id", "rank")
MAX_CANDIDATES = 4096  # images are held in memory until they are ranked
MAX_SEED = 2**32 - 1
MAX_WINDOW = 2**16  # tokens: more than an image has
LARGEST = 1e6  # number, and its inverse the smallest: far beyond use, and well within float32


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """How a token is drawn from the decoder's logits: one object from the command line to the logits.

    Each field is one number for all prompts, or an array [prompts]. The defaults are the published ones.
    `generation.sampling` applies them, in the order of this list, and registers the class as a JAX pytree.

    Attributes:
        guidance: super conditioning, `uncond + guidance * (cond - uncond)` on the logits; 1.0 is the caption alone.
        last_guidance: the scale at an image's last token; it changes linearly from `guidance` at the first. None
            keeps it constant.
        temperature: the logits are divided by it.
        top_k: how many of the likeliest tokens may be sampled: 1 is greedy, 0 is no limit, None is the `top_k` of the
            model's config.
        top_p: the smallest set of tokens with this much probability may be sampled; None is all of them.
    """

    guidance: Any = 10.0
    last_guidance: Any = None
    temperature: Any = 1.0
    top_k: Any = None
    top_p: Any = None

    def check(self) -> None:
        """Check one prompt's values, where None stands for the model's own.

        Raises:
            UserError: a value makes no sense; the message names the field.
        """
        for name in ("guidance", "last_guidance", "temperature"):
            if getattr(self, name) is not None:
                _check_positive(name, getattr(self, name), LARGEST, 1 / LARGEST)
        if self.top_k is not None:
            check_whole("top_k", self.top_k, 1, 2**31 - 1)
        if self.top_p is not None:
            _check_positive("top_p", self.top_p, 1.0)


SAMPLING = tuple(field.name for field in dataclasses.fields(SamplingParams))


@dataclasses.dataclass(frozen=True)
class GenerationSettings:
    """How to sample and rank; the defaults are those of the published pipeline.

    Attributes:
        candidates: images drawn for each prompt.
        keep: images returned for each prompt, the best by CLIP score; None keeps 4, or all where there are fewer.
        seed: 0 to 2**32 - 1; an image's key is derived from (seed, prompt text, candidate number).
        guidance, last_guidance, temperature, top_k, top_p: how tokens are sampled, as in `SamplingParams`. None of
            the first, of temperature and of top_k is the value of the model's config (10, 1 and 50 as published).
        negative_prompt: what not to draw: the text of the unconditional rows, blank as published. It does nothing
            where guidance is 1.
        decode: "sequential", one token a pass of the decoder; "parallel", a window of tokens a pass, which are the same
            but for rounding; "auto" takes the quicker one, by a table of what was measured (`generation.windows`).
        window: the tokens of a pass of parallel decoding; None takes the table's number.
        sampler: the noise that a token is drawn with belongs to its "id", or to its "rank" among the likeliest ones,
            as it did before version 1.0. The distribution is the same. The images of a seed are others.

    Raises:
        UserError: a value makes no sense; the message names the field.
    """

    candidates: int = 16
    keep: int | None = None
    seed: int = 0
    guidance: float | None = None
    last_guidance: float | None = None
    negative_prompt: str = ""
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    decode: str = DECODE[0]
    window: int | None = None
    sampler: str = SAMPLERS[0]

    def __post_init__(self):
        check_whole("candidates", self.candidates, 1, MAX_CANDIDATES)
        keep = min(4, self.candidates) if self.keep is None else self.keep
        check_whole("keep", keep, 1, MAX_CANDIDATES)
        if keep > self.candidates:
            raise UserError(
                f"keep is {keep}, but only {self.candidates} candidates are drawn: lower keep or raise candidates"
            )
        object.__setattr__(self, "keep", keep)
        check_whole("seed", self.seed, 0, MAX_SEED)
        self.sampling.check()
        if not isinstance(self.negative_prompt, str):
            raise UserError(f"negative_prompt is {type(self.negative_prompt).__name__}, not text")
        check_utf8("negative_prompt", self.negative_prompt)
        for name, known in (("decode", DECODE), ("sampler", SAMPLERS)):
            if getattr(self, name) not in known:
                raise UserError(f"{name} is {shown(getattr(self, name))}: it is one of {', '.join(known)}")
        if self.window is not None:
            check_whole("window", self.window, 2, MAX_WINDOW)
            if self.decode == "sequential":
                raise UserError(f"window is {self.window}, but sequential decoding has none: leave one of the two out")

    @property
    def sampling(self) -> SamplingParams:
        return SamplingParams(**{name: getattr(self, name) for name in SAMPLING})

    @property
    def guided(self) -> bool:
        """Whether there are unconditional rows; the guidance must be resolved."""
        return self.guidance != 1 or self.last_guidance not in (None, 1)


# The settings that each prompt of a call may have of its own.
SHARED = ("candidates", "keep", "decode", "window", "sampler")
PER_PROMPT = tuple(field.name for field in dataclasses.fields(GenerationSettings) if field.name not in SHARED)


def settings_of_each(prompts: int, **options) -> list[GenerationSettings]:
    """The settings of each of some prompts: a list among the options that are `PER_PROMPT` has one value a prompt.

    Raises:
        UserError: a list has another length, or a value makes no sense; the message names the field.
    """
    lists = {name: value for name, value in options.items() if name in PER_PROMPT and _is_list(value)}
    for name, values in lists.items():
        if len(values) != prompts:
            raise UserError(f"{name} has {len(values)} values for {prompts} prompts: give one for each, or one for all")
    shared = {name: value for name, value in options.items() if name not in lists}
    return [
        GenerationSettings(**shared, **{name: values[number] for name, values in lists.items()})
        for number in range(prompts)
    ]


def _is_list(value) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """The prompts as a list.

    Raises:
        UserError: it is a lone string, there is none, or one is blank.
    """
    if isinstance(prompts, str):
        raise UserError("prompts is one string: give a list of prompts, [prompt]")
    prompts = list(prompts)
    if not prompts:
        raise UserError("no prompt given: give at least one caption")
    for number, prompt in enumerate(prompts, 1):
        if not isinstance(prompt, str):
            raise UserError(f"prompt {number} is {type(prompt).__name__}, not text")
        # A word, or a visible sign beyond ASCII: emoji have names, other scripts are transliterated.
        if not any(char.isalnum() or (char > "\x7f" and char.isprintable()) for char in prompt):
            raise UserError(f"prompt {number} is blank: give a caption such as 'a red apple'")
        check_utf8(f"prompt {number}", prompt)
    return prompts


def check_utf8(name: str, text: str) -> None:
    """Check that text has no half characters, as JSON's escapes and damaged arguments may hold.

    Raises:
        UserError: it has.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise UserError(f"{name} is not valid UTF-8 text") from None


def check_number(number) -> None:
    """Check the number of a candidate.

    Raises:
        UserError: it is none.
    """
    check_whole("the candidate's number", number, 0, MAX_CANDIDATES - 1)


def check_whole(name: str, value, low: int, high: int | None = None) -> None:
    """Check that a value is a whole number within the bounds.

    Raises:
        UserError: it is not.
    """
    whole = isinstance(value, numbers.Integral) and not isinstance(value, bool)
    if not whole or value < low or (high is not None and value > high):
        bounds = f"at least {low}" if high is None else f"from {low} to {high}"
        raise UserError(f"{name} is {shown(value)}: it must be a whole number, {bounds}")


def _check_positive(name: str, value, high: float, low: float = 0.0) -> None:
    number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not number or not max(low, 1e-300) <= value <= high:
        bounds = f"from {low:g} to {high:g}" if low else f"above 0 and at most {high:g}"
        raise UserError(f"{name} is {shown(value)}: it must be a number {bounds}")
