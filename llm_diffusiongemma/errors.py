"""Every failure a user can meet, each with the way out in its sentence.

All of them are `llm.ModelError` (what programs that use llm's Python API catch) and
`click.ClickException` (what makes both `llm prompt` and `llm chat` print one line and exit with
status 1 instead of a traceback).
"""

from __future__ import annotations

import click
import llm

from .wording import printable


class DiffusionGemmaError(llm.ModelError, click.ClickException):
    """Base of all errors of this plugin. Its text is shown to the user as it is."""

    def __init__(self, message: str) -> None:
        # Whatever was quoted in it, and by whom: a terminal must not obey it.
        message = printable(message)
        # Both bases keep the message their own way: click in `.message`, Exception in `.args`.
        click.ClickException.__init__(self, message)

    def __str__(self) -> str:
        return self.message


class CheckpointError(DiffusionGemmaError, ValueError):
    """A folder is there but can't be used: no DiffusionGemma, files missing, weights missing."""


class FileAccessError(DiffusionGemmaError, OSError):
    """A file is there and can't be read: this user's rights, or the disk. What is in it may well be whole."""


class RegistryError(DiffusionGemmaError, ValueError):
    """The file that lists the user's own models can't be used, or something can't be a model in it."""


class CheckpointNotFoundError(DiffusionGemmaError, FileNotFoundError):
    """The weights are not on this machine."""


class HubConnectionError(DiffusionGemmaError, ConnectionError):
    """The weights are not, or not all, on this machine, and the Hub can't be asked or went silent.

    Raised without a network, when the Hub's name or host can't be reached, and under HF_HUB_OFFLINE.
    """


class HubAccessError(DiffusionGemmaError, PermissionError):
    """The Hub knows the weights and won't hand them out: licence not accepted, or token refused."""


class DownloadError(DiffusionGemmaError, OSError):
    """A download that the Hub or the connection failed: not found, server error, incomplete, damaged."""


class DiskSpaceError(DiffusionGemmaError, OSError):
    """The disk of the Hugging Face cache is too small for what must be downloaded, or has run full."""


class RemovalError(DiffusionGemmaError, OSError):
    """Weights that can't be let go of: a folder of one's own, none that are here, or some that are in use."""


class ServerError(DiffusionGemmaError, ConnectionError):
    """A server that can't be reached, doesn't answer in time, breaks off, or says what can't be understood."""


class ServerUnreachableError(ServerError):
    """A server that nothing at all has come from: so nothing has been answered, and another one may be asked."""


class ServerStoppedError(ServerError):
    """A server that somebody has ended before it had answered: he may not want the prompt answered elsewhere."""


class ServerAccessError(DiffusionGemmaError, PermissionError):
    """A server that wants a key, or another one."""


class ServerBusyError(DiffusionGemmaError, TimeoutError):
    """A server with so many waiting that it takes no more."""


class UnsupportedByServerError(DiffusionGemmaError, ValueError):
    """What was asked for can't be had of this server."""


class DeviceError(DiffusionGemmaError, ValueError):
    """The asked-for device does not exist here, or can't be used by this PyTorch."""


class NoGpuError(DeviceError):
    """There is no GPU here, and nobody has asked to run so large a model on the CPU."""


class DeviceMemoryError(DiffusionGemmaError, MemoryError):
    """The model, or this prompt, does not fit the memory of the device."""


class OptionError(DiffusionGemmaError, ValueError):
    """Options that are fine one by one but not together, or not with this checkpoint."""


class ConstraintError(DiffusionGemmaError, ValueError):
    """A reply can't be held to this: a schema, regular expression or choices that are invalid, that no reply
    can fulfil, or that need what a finite automaton of reasonable size can't do."""


class ReplayError(DiffusionGemmaError, OSError):
    """A replay that can't be written where it was asked for."""


class NotANumberError(DiffusionGemmaError, ArithmeticError):
    """What the network or its vision tower puts out is NaN or infinite."""

    def __init__(self, of: str = "The network's output") -> None:
        super().__init__(
            f"{of} is not a number, so no reply can be made of it. The weights may be damaged, or too large for "
            "their format on this device."
        )


class PromptError(DiffusionGemmaError, ValueError):
    """A prompt that can't be answered: empty, or made of parts this model can't read."""


class ImageError(PromptError):
    """An attachment that can't be shown to the model: unreadable, broken, of an impossible size or type."""


class ContextLengthError(PromptError):
    """The prompt leaves no room for a canvas in the model's context."""

    holder = "this model's context holds"
    other_way_out = ""

    def __init__(
        self, prompt_tokens: int, context_tokens: int, canvas_length: int, picture_tokens: int = 0
    ) -> None:
        """`picture_tokens` are those of the prompt that show pictures."""
        way_out = "Shorten the prompt or what tools return, or start a new conversation."
        if 2 * picture_tokens > prompt_tokens:
            way_out = (
                f"Pictures take {picture_tokens:,}: attach fewer of them or a shorter video, or set image_tokens "
                "lower."
            )
        super().__init__(
            f"The prompt is {prompt_tokens:,} tokens long, but {self.holder} {context_tokens:,} and "
            f"{canvas_length:,} of them are needed for the reply's first canvas. {way_out}{self.other_way_out}"
        )
        self.prompt_tokens = prompt_tokens
        self.context_tokens = context_tokens


class ContextMemoryError(ContextLengthError):
    """The prompt leaves no room for a canvas in the context that there is memory for, beside the weights."""

    holder = "beside the weights there is memory for"
    other_way_out = " A device with more memory, or weights of fewer bits, leave room for more."
