"""Chat templates: from messages to the one text a model was trained to continue."""

import datetime
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NoReturn

from mbjax.errors import InputError

if TYPE_CHECKING:
    import jinja2

_MOST_CHARACTERS = 10_000_000  # of a rendered conversation; a context of 128K tokens is about 0.5M


class ChatTemplate:
    """A jinja2 template as Hugging Face's tokenizers carry it, rendered with their settings in a bounded sandbox.

    source is the template's text; bos_token and eos_token are what it may write around the messages.
    """

    def __init__(self, source: str, bos_token: str = "", eos_token: str = ""):
        self.source, self.bos_token, self.eos_token = source, bos_token, eos_token

    @property
    def digest(self) -> str:
        """sha256 of the template's text."""
        return hashlib.sha256(self.source.encode()).hexdigest()

    def render(
        self, messages: Sequence[Mapping[str, str]], add_generation_prompt: bool = True, **variables: Any
    ) -> str:
        """The text of messages, each {"role": ..., "content": ...}; with the assistant's opening if asked for.

        variables are further names that a template may read (`enable_thinking`). Raises InputError if the template
        is not valid, refuses the messages, or does what a template has no business doing.
        """
        import jinja2

        pieces: list[str] = []
        size = 0
        try:
            template = self._compiled
            template.environment.begin()  # pyright: ignore[reportAttributeAccessIssue]
            for piece in template.generate(
                messages=[dict(message) for message in messages],
                add_generation_prompt=add_generation_prompt,
                bos_token=self.bos_token,
                eos_token=self.eos_token,
                tools=None,
                documents=None,
                raise_exception=_refuse,
                strftime_now=lambda form: datetime.datetime.now().strftime(form),
                **variables,
            ):
                size += len(piece)
                if size > _MOST_CHARACTERS:
                    raise InputError(f"the chat template writes more than {_MOST_CHARACTERS:,} characters")
                pieces.append(piece)
        except InputError:
            raise
        except jinja2.TemplateError as error:
            raise InputError(f"the chat template fails: {_line(error)}") from error
        except Exception as error:  # a template is a program: it can meet any of Python's errors
            raise InputError(f"the chat template fails: {type(error).__name__}: {_line(error)}") from error
        return "".join(pieces)

    @cached_property
    def _compiled(self) -> "jinja2.Template":
        from mbjax.io.template_sandbox import BoundedEnvironment

        environment = BoundedEnvironment()
        environment.filters["tojson"] = _to_json
        return environment.from_string(self.source)


def _refuse(message: str) -> NoReturn:
    raise InputError(f"the chat template refuses the messages: {_line(message)}")


def _to_json(value: Any, ensure_ascii: bool = False, indent: int | None = None, **options: Any) -> str:
    # jinja2's own escapes HTML characters, which would change the prompt
    return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, **options)


def _line(error: object) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
