from __future__ import annotations

import io
import pickle
from collections import UserDict
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import soundfile
from PIL import Image

from lazystore.errors import ConfigError, MissingExtraError, SampleError
from lazystore.hub.registry import ROWS, DatasetSpec
from lazystore.hub.samples import PROCESSORS, SYNTHETIC, as_text, check_spec, process
from lazystore.hub.tokenizing import Encoder, encoder

TOKENS = encoder(lambda text: [len(word) for word in text.split()])


def a_spec(processor: Any = "text", **fields: Any) -> DatasetSpec:
    columns = fields.pop("columns", {role: role for role in ("text", "label")})
    return DatasetSpec(name="mine", path="me/mine", processor=processor, task="some", columns=columns, **fields)


def of_row(name: str) -> DatasetSpec:
    return next(row for row in ROWS if row.name == name)


def a_wav() -> bytes:
    file = io.BytesIO()
    soundfile.write(file, np.zeros(80, np.float32), 8000, format="WAV")
    return file.getvalue()


def a_png() -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (3, 2)).save(file, "PNG")
    return file.getvalue()


# -- what a sample is -----------------------------------------------------------------------


def test_a_sample_holds_what_there_is_and_nothing_else() -> None:
    sample = process(a_spec(), {"text": "a bc", "label": None, "id": 5}, 0, TOKENS)
    assert list(sample) == ["task", "dataset", "modalities", "text", "input_ids", "attention_mask", "labels"]
    assert (sample["task"], sample["dataset"], sample["modalities"]) == ("some", "mine", ("text",))
    assert sample["text"] == "a bc" and sample["input_ids"].tolist() == [1, 2]
    assert list(process(a_spec(), {"text": "a bc"}, 0)) == ["task", "dataset", "modalities", "text"]


def test_the_row_is_not_changed_and_may_be_any_mapping() -> None:
    row = {"text": "a bc", "label": 1, SYNTHETIC: True}
    before = dict(row)
    assert process(a_spec(), UserDict(row), 0)["text"] == "a bc"
    process(a_spec(), row, 0, TOKENS)
    assert row == before


def test_a_made_up_row_makes_a_marked_sample_and_no_other_does() -> None:
    assert process(a_spec(), {"text": "a", SYNTHETIC: True}, 0)["synthetic"] is True
    for row in ({"text": "a"}, {"text": "a", "synthetic": True}, {"text": "a", SYNTHETIC: "yes"}):
        assert "synthetic" not in process(a_spec(), row, 0)


def test_where_the_text_is_to_be_learnt_the_tokens_are_the_labels_unless_there_is_a_label() -> None:
    sample = process(a_spec(), {"text": "a bc"}, 0, TOKENS)
    assert sample["labels"].tolist() == [1, 2]
    sample["labels"][:] = -100  # masking labels leaves the tokens alone
    assert sample["input_ids"].tolist() == [1, 2]
    assert process(a_spec(), {"text": "a bc", "label": 3}, 0, TOKENS)["labels"] == 3
    assert "labels" not in process(a_spec("classification"), {"text": "a bc"}, 0, TOKENS)
    assert "labels" not in process(a_spec(), {"text": "a bc"}, 0, None)


def test_modalities_are_those_the_sample_has() -> None:
    spec = a_spec("multimodal", columns={name: name for name in ("text", "image", "audio", "label")})
    row = {"text": "a", "image": a_png(), "audio": a_wav(), "label": 1}
    assert process(spec, row, 0)["modalities"] == ("text", "image", "audio")
    assert process(spec, row | {"text": None}, 0)["modalities"] == ("image", "audio")
    sample = process(spec, row | {"audio": None}, 0)
    assert sample["modalities"] == ("text", "image") and "audio" not in sample


# -- processors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dataset", "row", "text"),
    [
        (
            "open_platypus",
            {"instruction": "Add.", "input": "1 2", "output": "3"},
            "### Instruction:\nAdd.\n\n### Input:\n1 2\n\n### Response:\n3",
        ),
        (
            "open_platypus",
            {"instruction": "Add.", "input": "", "output": None},
            "### Instruction:\nAdd.\n\n### Response:\n",
        ),
        ("humaneval", {"prompt": "def f():\n", "canonical_solution": "    return 1\n"}, "def f():\n    return 1\n"),
        ("ds1000", {"prompt": "BEGIN SOLUTION", "reference_code": "x = 1"}, "BEGIN SOLUTION\nx = 1"),
        ("ds1000", {"prompt": "BEGIN SOLUTION"}, "BEGIN SOLUTION"),
        ("prosocial_dialog", {"context": "Hi", "response": "Hello"}, "User: Hi\nAssistant: Hello"),
        ("financial_phrasebank", {"sentence": "Up.", "label": 2}, "Up."),
        (
            "logicqa",
            {"context": "C.", "query": "Q?", "options": ["x", "y"], "correct_option": 1},
            "Context: C.\nQuestion: Q?\nA. x\nB. y\nAnswer: B. y",
        ),
    ],
)
def test_text_of_the_registered_datasets(dataset: str, row: dict[str, Any], text: str) -> None:
    sample = process(of_row(dataset), row, 0)
    assert sample["text"] == text and sample["dataset"] == dataset and sample["modalities"] == ("text",)


def test_beans_luma_and_clotho_give_images_and_recordings() -> None:
    beans = process(of_row("beans"), {"image": {"bytes": a_png()}, "labels": 2, "image_file_path": "x"}, 0, TOKENS)
    assert beans["image"].size == (3, 2) and beans["labels"] == 2 and beans["modalities"] == ("image",)
    luma = process(of_row("luma"), {"audio": {"bytes": a_wav(), "path": "x"}, "label": "cat", "text": "a cat"}, 0)
    assert (
        luma["audio"]["sampling_rate"] == 8000 and luma["labels"] == "cat" and luma["modalities"] == ("text", "audio")
    )
    clotho = process(of_row("clotho_aqa"), {"audio": a_wav(), "question": "Rain?", "answer": "yes"}, 0)
    assert clotho["text"] == "Question: Rain?\nAnswer: yes" and len(clotho["audio"]["array"]) == 80


@pytest.mark.parametrize(
    ("answer", "options", "said"),
    [
        (0, ["x", "y"], "A. x"),
        (np.int64(1), np.array(["x", "y"]), "B. y"),
        ("y", ["x", "y"], "y"),
        (["both", "none"], None, "both"),
        (7, None, "7"),
        (None, None, ""),
    ],
)
def test_an_answer_is_said_in_words(answer: Any, options: Any, said: str) -> None:
    spec = a_spec("qa", columns={role: role for role in ("question", "answer", "options")})
    text = process(spec, {"question": "?", "answer": answer, "options": options}, 0)["text"]
    assert text.endswith(f"Answer: {said}".rstrip())


@pytest.mark.parametrize(("answer", "options"), [(2, ["x", "y"]), (-1, ["x"]), (0, "xy")])
def test_an_answer_that_is_none_of_the_options_is_refused(answer: Any, options: Any) -> None:
    spec = a_spec("qa", columns={role: role for role in ("question", "answer", "options")})
    with pytest.raises(SampleError, match="option"):
        process(spec, {"question": "?", "answer": answer, "options": options}, 0)


def test_many_options_are_lettered_then_numbered() -> None:
    spec = a_spec("qa", columns={"question": "question", "options": "options"})
    text = process(spec, {"question": "?", "options": [str(n) for n in range(28)]}, 0)["text"]
    assert "\nZ. 25\n27. 26\n28. 27\n" in text


def test_a_dialog_may_be_a_list_of_turns() -> None:
    spec = a_spec("dialog", columns={"dialog": "messages"})
    turns = [{"role": "user", "content": "Hi"}, {"from": "gpt", "value": "Hello"}, "Bye"]
    assert process(spec, {"messages": turns}, 0)["text"] == "user: Hi\ngpt: Hello\nBye"


def test_text_is_made_of_what_columns_hold() -> None:
    assert as_text("a") == "a" and as_text(b"\xc3\xa4") == "ä"
    assert as_text(5) == as_text(np.int64(5)) == "5" and as_text(0.5) == "0.5" and as_text(True) == "True"
    assert as_text(["a", None, 1]) == as_text(("a", 1)) == "a\n1" and as_text(np.array(["a", "1"])) == "a\n1"
    assert as_text({"text": "a"}) == "a" and as_text({"speaker": "me", "text": ["a", "b"]}) == "me: a\nb"


@pytest.mark.parametrize("value", [object(), {"neither": 1}, {1, 2}, b"\xff", [object()]])
def test_what_is_no_text_is_refused_with_its_place(value: Any) -> None:
    with pytest.raises(SampleError, match="'mine', sample 8"):
        process(a_spec(), {"text": value}, 8)


def test_lists_nested_without_end_are_refused() -> None:
    nested: list[Any] = []
    for _ in range(100_000):
        nested = [nested]
    for row in ({"text": nested}, {"text": "a", "label": nested}):
        with pytest.raises(SampleError, match="sample 1: RecursionError"):
            process(a_spec(), row, 1)
    with pytest.raises(SampleError, match="sample 1"):
        process(of_row("beans"), {"image": nested, "labels": 0}, 1)
    while nested:  # taken apart by hand: freeing it would recurse as well
        nested = nested.pop()


@pytest.mark.parametrize(
    ("label", "names", "found"),
    [
        (1, (), 1),
        (1.5, (), 1.5),
        ("cat", (), "cat"),
        (-1, (), -1),
        (True, (), 1),
        (np.int64(1), (), 1),
        (np.array([1, 0]), (), [1, 0]),
        ("dog", ("cat", "dog"), 1),
        (1, ("cat", "dog"), 1),
        (["dog", "cat"], ("cat", "dog"), [1, 0]),
    ],
)
def test_labels_are_plain_numbers_and_named_classes_their_number(label: Any, names: Any, found: Any) -> None:
    labels = process(a_spec("classification", labels=names), {"text": "a", "label": label}, 0)["labels"]
    assert labels == found and type(labels) is type(found)


def test_minus_one_is_no_label_where_classes_are_named() -> None:
    sample = process(a_spec("classification", labels=("cat", "dog")), {"text": "a", "label": np.int64(-1)}, 0)
    assert "labels" not in sample


@pytest.mark.parametrize(("label", "told"), [("dgo", "did you mean 'dog'"), (2, "2 classes"), (-2, "2 classes")])
def test_a_class_that_there_is_not_is_refused(label: Any, told: str) -> None:
    with pytest.raises(SampleError, match=told):
        process(a_spec("classification", labels=("cat", "dog")), {"text": "a", "label": label}, 0)


# -- columns --------------------------------------------------------------------------------


def test_of_several_columns_the_first_that_the_sample_has_is_taken() -> None:
    spec = a_spec(columns={"text": ("text", "transcript")})
    assert process(spec, {"text": "a", "transcript": "b"}, 0)["text"] == "a"
    assert process(spec, {"text": None, "transcript": "b"}, 0)["text"] == "b"
    assert process(spec, {"transcript": "b"}, 0)["text"] == "b"


def test_without_columns_roles_are_looked_for_under_their_own_names() -> None:
    spec = a_spec("qa", columns={})
    assert process(spec, {"question": "?", "answer": "!"}, 0)["text"] == "Question: ?\nAnswer: !"


def test_with_columns_a_role_that_is_not_named_is_not_guessed() -> None:
    spec = a_spec("qa", columns={"question": "q"})
    assert process(spec, {"q": "?", "answer": "!"}, 0)["text"] == "Question: ?\nAnswer:"


def test_a_missing_column_is_named_with_those_there_are_and_near_ones() -> None:
    with pytest.raises(SampleError) as caught:
        process(of_row("open_platypus"), {"instructions": "a", "output": "b"}, 17)
    message = str(caught.value)
    for part in ("open_platypus", "sample 17", "'instruction'", "did you mean 'instructions'", "instructions, output"):
        assert part in message
    assert (caught.value.dataset, caught.value.index) == ("open_platypus", 17)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.dataset, again.index) == (message, "open_platypus", 17)


def test_a_null_is_told_from_a_missing_column() -> None:
    with pytest.raises(SampleError, match=r"'text'.* is null"):
        process(a_spec(), {"text": None}, 0)
    with pytest.raises(SampleError, match="the columns are none"):
        process(a_spec(), {SYNTHETIC: True}, 0)


@pytest.mark.parametrize("processor", PROCESSORS)
def test_every_processor_refuses_a_row_with_nothing_in_it(processor: str) -> None:
    with pytest.raises(SampleError, match="'mine', sample 3: "):
        process(a_spec(processor, columns={}), {"else": 1}, 3)


@pytest.mark.parametrize("row", [None, [1], "text", 5])
def test_a_row_that_is_none_is_refused(row: Any) -> None:
    with pytest.raises(SampleError, match="mapping"):
        process(a_spec(), row, 0)


# -- processors of the user's own -----------------------------------------------------------


def test_a_function_is_called_with_all_there_is_and_what_it_leaves_out_is_added() -> None:
    calls: list[tuple[Any, ...]] = []

    def mine(*given: Any) -> dict[str, Any]:
        calls.append(given)
        return {"text": "a bc", "image": a_png(), "extra": 1, "nothing": None}

    spec, row, config = a_spec(mine), {"x": 1}, SimpleNamespace()
    sample = process(spec, row, 4, TOKENS, config)
    assert calls == [(spec, row, 4, TOKENS, config)]
    assert sample["dataset"] == "mine" and sample["modalities"] == ("text", "image") and sample["extra"] == 1
    assert sample["image"].size == (3, 2) and sample["input_ids"].tolist() == [1, 2]
    assert "nothing" not in sample and "labels" not in sample


def test_what_a_function_says_stands() -> None:
    def mine(*given: Any) -> dict[str, Any]:
        return {"task": "other", "text": "a", "input_ids": [9], "labels": 5}

    sample = process(a_spec(mine), {}, 0, TOKENS)
    assert sample["task"] == "other" and sample["input_ids"] == [9] and sample["labels"] == 5


def test_a_functions_recording_may_have_channels_and_its_bytes_are_decoded() -> None:
    stereo = {"array": np.zeros((2, 9), np.float32), "sampling_rate": 8000}
    assert process(a_spec(lambda *given: {"audio": stereo}), {}, 0)["audio"] is stereo
    assert process(a_spec(lambda *given: {"audio": a_wav()}), {}, 0)["audio"]["array"].shape == (80,)


def test_what_a_function_raises_is_told_with_its_place_and_kept_as_the_cause() -> None:
    def mine(*given: Any) -> dict[str, Any]:
        raise KeyError("inputs")

    with pytest.raises(SampleError, match="'mine', sample 4: KeyError: 'inputs'") as caught:
        process(a_spec(mine), {}, 4)
    assert isinstance(caught.value.__cause__, KeyError)


@pytest.mark.parametrize("made", [None, 5, [("text", "a")]])
def test_a_function_that_gives_no_dict_is_refused(made: Any) -> None:
    with pytest.raises(SampleError, match="not a sample's dict"):
        process(a_spec(lambda *given: made), {}, 0)


# -- errors ---------------------------------------------------------------------------------


def test_a_tokenizer_that_raises_is_named() -> None:
    def bad(text: str) -> list[int]:
        raise ValueError("disallowed special token")

    with pytest.raises(SampleError, match="'mine', sample 2: the tokenizer raised ValueError: disallowed") as caught:
        process(a_spec(), {"text": "a"}, 2, encoder(bad))
    assert isinstance(caught.value.__cause__, SampleError)
    assert isinstance(caught.value.__cause__.__cause__, ValueError)


def test_what_a_tokenizer_gives_is_checked() -> None:
    with pytest.raises(SampleError, match="'mine', sample 2: the tokenizer gave"):
        process(a_spec(), {"text": "a"}, 2, encoder(lambda text: ["a"]))


@pytest.mark.parametrize("value", [b"no image", {"path": "/etc/passwd"}, "/etc/passwd", 5])
def test_media_that_do_not_decode_are_told_with_their_place(value: Any) -> None:
    with pytest.raises(SampleError, match="'beans', sample 6: "):
        process(of_row("beans"), {"image": value, "labels": 0}, 6)
    with pytest.raises(SampleError, match="'luma', sample 6: "):
        process(of_row("luma"), {"audio": value}, 6)


@pytest.mark.parametrize("error", [MissingExtraError("pip install"), MemoryError(), KeyboardInterrupt()])
def test_what_is_not_the_samples_fault_comes_as_it_is(error: BaseException) -> None:
    def mine(*given: Any) -> dict[str, Any]:
        raise error

    def tokenizer(text: str) -> list[int]:
        raise error

    with pytest.raises(type(error)) as caught:
        process(a_spec(mine), {}, 0)
    assert caught.value is error
    with pytest.raises(type(error)) as caught:
        process(a_spec(), {"text": "a"}, 0, encoder(tokenizer))
    assert caught.value is error


# -- specs ----------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", ROWS, ids=lambda spec: spec.name)
def test_every_registered_dataset_has_a_processor_and_its_columns(spec: DatasetSpec) -> None:
    check_spec(spec)
    known = PROCESSORS[str(spec.processor)]
    assert set(spec.columns) <= {*known.needs, *known.takes}


def test_an_unknown_processor_is_refused_with_near_ones() -> None:
    with pytest.raises(ConfigError, match="did you mean 'instruction'"):
        check_spec(a_spec("instructions"))
    with pytest.raises(ConfigError, match="classification"):
        process(a_spec("instructions"), {"text": "a"}, 0)


def test_a_processor_without_the_columns_it_needs_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"'qa' needs a column for question.*did you mean 'questions'"):
        check_spec(a_spec("qa", columns={"questions": "q"}))
    check_spec(a_spec("qa", columns={}))
    check_spec(a_spec(lambda *given: {}, columns={"anything": "x"}))


def test_encoders_are_optional_and_mappings_of_the_users_are_taken() -> None:
    assert isinstance(TOKENS, Encoder)
    assert isinstance(process(a_spec(lambda *given: UserDict(text="a")), {}, 0), Mapping)
