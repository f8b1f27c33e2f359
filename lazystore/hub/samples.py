"""`process`: a dataset's row to the one kind of sample that `MultimodalDataset` yields.

Here: what a processor makes of a row's columns, the same for real and synthetic rows. Tokenizers, files of images
and recordings, and the datasets themselves are in ``tokenizing``, ``media`` and ``registry``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from lazystore.errors import ConfigError, FormatError, LazyStoreError, MissingExtraError, SampleError
from lazystore.hub.media import decode_audio, decode_image
from lazystore.hub.near import near

if TYPE_CHECKING:
    from lazystore.hub.registry import DatasetSpec
    from lazystore.hub.tokenizing import Encoder

__all__ = ["PROCESSORS", "SYNTHETIC", "Fields", "as_text", "check_spec", "column_of", "process"]

#: Key of a raw row that was made up; its sample is marked.
SYNTHETIC = "__synthetic__"
#: Keys of what a sample can hold of each modality, in the order of ``sample["modalities"]``.
_MODALITIES = ("text", "image", "audio")


def process(
    spec: DatasetSpec, row: Mapping[str, Any], index: int, encode: Encoder | None = None, config: Any = None
) -> dict[str, Any]:
    """The sample that a row is; the row is not changed.

    Parameters:
        spec: the dataset.
        row: one of its rows: column -> value.
        index: its number there.
        encode: see :func:`lazystore.hub.tokenizing.encoder`; None: no tokens.
        config: the user's; passed on to processors that are functions.

    Returns:
        ``task``, ``dataset``, ``modalities`` (those it has, out of text, image, audio), and of the following what
        there is; what is not there has no key:

        - ``text``, ``input_ids`` and ``attention_mask`` (int64 arrays),
        - ``image``: a PIL image or an array, ``audio``: ``{"array": float32, "sampling_rate": Hz}``, both in the
          size and at the rate they have,
        - ``labels``: what the label column says: a number, or, where the spec names classes, the number of a named
          one. Without a label column, of processors whose text is what is to be learnt: the token numbers.
        - ``synthetic``: True, where the row was made up.

    Raises:
        SampleError: a column is missing or null, bytes do not decode, the processor or tokenizer raised (chained).
        ConfigError: the spec names no processor that there is.
        MissingExtraError: pillow or soundfile is needed and not installed.
    """
    processor = spec.processor
    if not callable(processor) and processor not in PROCESSORS:
        check_spec(spec)
    try:
        if not isinstance(row, Mapping):
            raise FormatError(f"a row is a mapping of columns to values, this is a {type(row).__name__}")
        if callable(processor):
            made = processor(spec, row, index, encode, config)
            if not isinstance(made, Mapping):
                raise FormatError(f"its processor gave a {type(made).__name__}, not a sample's dict")
            generates = False
        else:
            known = PROCESSORS[processor]
            made, generates = known.make(Fields(spec, row)), known.generates
        return _finished(spec, row, dict(made), encode, generates)
    except (MissingExtraError, MemoryError):
        raise  # nothing is wrong with the sample
    except Exception as error:
        reason = str(error) if isinstance(error, LazyStoreError) else f"{type(error).__name__}: {error}"
        raise SampleError(f"dataset {spec.name!r}, sample {index}: {reason}", spec.name, index) from error


def check_spec(spec: DatasetSpec) -> None:
    """Look at what can be known before there is a sample.

    Raises:
        ConfigError: no such processor, or it needs a column that the spec does not name.
    """
    processor = spec.processor
    if callable(processor):
        return
    known = PROCESSORS.get(processor)
    if known is None:
        raise ConfigError(
            f"dataset {spec.name!r}: no processor is called {processor!r}{near(processor, PROCESSORS)};"
            f" known are {', '.join(PROCESSORS)}, or give a function"
        )
    missing = [role for role in known.needs if spec.columns and role not in spec.columns]
    if missing:
        raise ConfigError(
            f"dataset {spec.name!r}: the processor {processor!r} needs a column for {', '.join(missing)};"
            f" columns= names {', '.join(spec.columns)}{near(missing[0], spec.columns)}"
        )


def column_of(spec: DatasetSpec, role: str) -> tuple[str, ...]:
    """The columns that may hold this role; of a spec that names no columns at all, the one called like the role."""
    named = spec.columns.get(role, ()) if spec.columns else role
    return (named,) if isinstance(named, str) else tuple(named)


def _finished(
    spec: DatasetSpec, row: Mapping[str, Any], sample: dict[str, Any], encode: Encoder | None, generates: bool
) -> dict[str, Any]:
    """Decoded, encoded, and told what it is."""
    sample = {key: value for key, value in sample.items() if value is not None}
    if "image" in sample:
        sample["image"] = decode_image(sample["image"])
    if "audio" in sample and not (callable(spec.processor) and _is_audio(sample["audio"])):
        sample["audio"] = decode_audio(sample["audio"], sampling_rate=sample.get("sampling_rate"))
    sample.pop("sampling_rate", None)  # of the recording, which has it now
    if encode is not None and "text" in sample and "input_ids" not in sample:
        try:
            sample["input_ids"], sample["attention_mask"] = encode(sample["text"])
        except (FormatError, MissingExtraError, MemoryError):
            raise
        except Exception as error:
            raise SampleError(f"the tokenizer raised {type(error).__name__}: {error}") from error
    if "labels" not in sample and generates and "input_ids" in sample:
        sample["labels"] = sample["input_ids"].copy()  # a transform may mask some of them
    head: dict[str, Any] = {"task": spec.task, "dataset": spec.name}
    head["modalities"] = tuple(name for name in _MODALITIES if name in sample)
    if row.get(SYNTHETIC) is True:
        sample["synthetic"] = True
    return head | sample


def _is_audio(value: Any) -> bool:
    """What a function made of a recording stands: it may want two channels."""
    return isinstance(value, Mapping) and hasattr(value.get("array"), "dtype") and "sampling_rate" in value


# -- columns --------------------------------------------------------------------------------


class Fields:
    """A row's columns by what they are for. None stands for "not there, or null" only in here."""

    __slots__ = ("_row", "_spec")

    def __init__(self, spec: DatasetSpec, row: Mapping[str, Any]) -> None:
        self._spec, self._row = spec, row

    def get(self, role: str) -> Any:
        """The first value there is in the role's columns; None without one."""
        for column in column_of(self._spec, role):
            value = self._row.get(column)
            if value is not None:
                return value
        return None

    def need(self, role: str) -> Any:
        """The same.

        Raises:
            SampleError: there is none; columns that there are, and the remedy, are named.
        """
        value = self.get(role)
        if value is not None:
            return value
        columns = column_of(self._spec, role)
        there = [str(name) for name in self._row if name != SYNTHETIC]
        if not columns:
            raise SampleError(f"no column has the role {role!r}; name one with columns={{{role!r}: ...}} in the spec")
        named = " or ".join(map(repr, columns))
        if any(column in self._row for column in columns):
            raise SampleError(f"the column {named} ({role}) is null here")
        raise SampleError(
            f"there is no column {named} ({role}){near(columns[0], there)}; the columns are"
            f" {', '.join(there) or 'none'}; columns={{{role!r}: ...}} in the spec names another"
        )

    def text(self, role: str) -> str:
        return as_text(self.need(role))

    def optional_text(self, role: str) -> str:
        """Empty without one."""
        value = self.get(role)
        return "" if value is None else as_text(value)

    def label(self) -> Any:
        """The label column's value; a named class as its number. None without one.

        Where the spec names classes, -1 is none either: the hub has it in splits that are not labelled.
        """
        value, names = self.get("label"), self._spec.labels
        return None if value is None or (names and value == -1) else _label(value, names)


def as_text(value: Any) -> str:
    """Text from a column: strings and numbers as they are, lists by the line, turns of a chat as ``role: content``.

    Raises:
        FormatError: it is none of these.
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (bytes, bytearray)):
        return bytes(value).decode()
    if isinstance(value, Mapping):
        said = next((value[key] for key in ("content", "value", "text") if value.get(key) is not None), None)
        if said is None:
            raise FormatError(f"a turn has 'content', 'value' or 'text'; this has {', '.join(map(str, value))}")
        who = next((value[key] for key in ("role", "from", "speaker") if value.get(key) is not None), None)
        return as_text(said) if who is None else f"{as_text(who)}: {as_text(said)}"
    if hasattr(value, "tolist"):
        value = value.tolist()  # numpy's and torch's numbers and arrays
    if isinstance(value, (list, tuple)):
        return "\n".join(as_text(one) for one in value if one is not None)
    if isinstance(value, (int, float)):
        return str(value)
    raise FormatError(f"text cannot be made of a {type(value).__name__}")


def _label(value: Any, names: tuple[str, ...]) -> Any:
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (list, tuple)):
        return [_label(one, names) for one in value]
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, str) and names:
        if value not in names:
            raise SampleError(f"no class is called {value!r}{near(value, names)}; classes are {', '.join(names)}")
        return names.index(value)
    if isinstance(value, int) and names and not 0 <= value < len(names):
        raise SampleError(f"label {value} is none of the {len(names)} classes {', '.join(names)}")
    return value


# -- processors -----------------------------------------------------------------------------


def _joined(*parts: str) -> str:
    """The parts that are not empty, a blank line between them."""
    return "\n\n".join(part for part in parts if part)


def _plain(fields: Fields) -> dict[str, Any]:
    return {"text": fields.text("text"), "labels": fields.label()}


def _instruction(fields: Fields) -> dict[str, Any]:
    """The layout of Stanford's Alpaca (github.com/tatsu-lab/stanford_alpaca), without its opening sentence."""
    given, answer = fields.optional_text("input"), fields.optional_text("output")
    text = _joined(
        f"### Instruction:\n{fields.text('instruction')}",
        f"### Input:\n{given}" if given else "",
        f"### Response:\n{answer}",
    )
    return {"text": text, "labels": fields.label()}


def _code(fields: Fields) -> dict[str, Any]:
    prompt, solution = fields.text("prompt"), fields.optional_text("solution")
    between = "" if not solution or prompt.endswith("\n") else "\n"
    return {"text": f"{prompt}{between}{solution}", "labels": fields.label()}


def _qa(fields: Fields) -> dict[str, Any]:
    context, options, answer = fields.optional_text("context"), fields.get("options"), fields.get("answer")
    listed = []
    if options is not None:
        options = options.tolist() if hasattr(options, "tolist") else options
        if not isinstance(options, (list, tuple)):
            raise FormatError(f"options are a list, this is a {type(options).__name__}")
        listed = [f"{_letter(number)}. {as_text(option)}" for number, option in enumerate(options)]
    return {
        "text": "\n".join(
            [
                *([f"Context: {context}"] if context else []),
                f"Question: {fields.text('question')}",
                *listed,
                f"Answer: {_answer(answer, listed)}".rstrip(),
            ]
        ),
        "labels": fields.label(),
    }


def _letter(number: int) -> str:
    """A, B, ... Z, then numbers."""
    return chr(ord("A") + number) if number < 26 else str(number + 1)


def _answer(answer: Any, options: list[str]) -> str:
    """An answer that is a number means one of the options, if there are any; of several answers, the first."""
    if hasattr(answer, "tolist"):
        answer = answer.tolist()
    if isinstance(answer, (list, tuple)) and answer:
        answer = answer[0]
    if isinstance(answer, int) and not isinstance(answer, bool) and options:
        if not 0 <= answer < len(options):
            raise FormatError(f"the answer is option {answer} of {len(options)}, counted from 0")
        return options[answer]
    return "" if answer is None else as_text(answer)


def _dialog(fields: Fields) -> dict[str, Any]:
    turns = fields.get("dialog")
    if turns is not None:
        return {"text": as_text(turns), "labels": fields.label()}
    text = f"User: {fields.text('context')}\nAssistant: {fields.optional_text('response')}".rstrip()
    return {"text": text, "labels": fields.label()}


def _image_classification(fields: Fields) -> dict[str, Any]:
    return {"image": fields.need("image")} | _any(fields)


def _audio_text(fields: Fields) -> dict[str, Any]:
    return {"audio": fields.need("audio")} | _any(fields)


def _audio_qa(fields: Fields) -> dict[str, Any]:
    return _qa(fields) | {"audio": fields.need("audio"), "sampling_rate": fields.get("sampling_rate")}


def _any(fields: Fields) -> dict[str, Any]:
    """Whatever of a sample's parts the row has."""
    text = fields.get("text")
    sample = {name: fields.get(name) for name in ("image", "audio", "sampling_rate")}
    if text is None and sample["image"] is None and sample["audio"] is None:
        fields.need("text")  # says what there is
    return sample | {"text": None if text is None else as_text(text), "labels": fields.label()}


@dataclass(frozen=True, slots=True)
class Processor:
    """What makes a sample of columns.

    Attributes:
        make: the sample's parts, None for those it has not.
        needs: roles without which it cannot work.
        takes: roles that it uses where they are.
        generates: its text is what is to be learnt, so that the tokens are the labels.
    """

    make: Callable[[Fields], dict[str, Any]]
    needs: tuple[str, ...]
    takes: tuple[str, ...] = ("label",)
    generates: bool = True


#: By name; ``register_dataset(..., processor=name)``.
PROCESSORS: dict[str, Processor] = {
    "text": Processor(_plain, ("text",)),
    "instruction": Processor(_instruction, ("instruction",), ("input", "output", "label")),
    "code": Processor(_code, ("prompt",), ("solution", "label")),
    "qa": Processor(_qa, ("question",), ("answer", "context", "options", "label")),
    "dialog": Processor(_dialog, (), ("context", "response", "dialog", "label")),
    "classification": Processor(_plain, ("text",), generates=False),
    "image_classification": Processor(_image_classification, ("image",), ("text", "label"), generates=False),
    "audio_text": Processor(_audio_text, ("audio",), ("text", "image", "label", "sampling_rate")),
    "audio_qa": Processor(_audio_qa, ("audio", "question"), ("answer", "context", "options", "label", "sampling_rate")),
    "multimodal": Processor(_any, (), ("text", "image", "audio", "label", "sampling_rate"), generates=False),
}
