"""CopyColors rows as published: read, checked, and made into banks whose prompts are verbatim."""

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest

from abstraction.tasks import mcqa
from abstraction.tasks.copycolors import banks_from_rows, load_hub, read_rows
from abstraction.tasks.mcqa import FAMILIES, MODEL

NOUNS = ("a box", "an owl", "shoes", "the lamp", "a dog house")
SIZES = {"fit": 30, "calibration": 10, "test": 9}


def part(noun, color, choices, labels, prefix="Question: ", key=int):
    verb = "are" if noun == "shoes" else "is"
    lines = "".join(f"{label}. {choice}\n" for label, choice in zip(labels, choices, strict=True))
    pointer = choices.index(color)
    return {
        "prompt": f"{prefix}{noun.capitalize()} {verb} {color}. What color {verb} {noun}?\n{lines}Answer:",
        "choices": {"label": list(labels), "text": list(choices)},
        "answerKey": pointer if key is int else labels[pointer],
    }


def row(noun, color, others, key=int):
    """A row with the correct choice second, then third, and letters BACD, then WXYZ."""
    a, b, c = others
    base, moved = (a, color, b, c), (c, b, color, a)
    made = part(noun, color, base, "BACD", key=key)
    made["answerPosition_counterfactual"] = part(noun, color, moved, "BACD", key=key)
    made["randomLetter_counterfactual"] = part(noun, color, base, "WXYZ", key=key)
    made["answerPosition_randomLetter_counterfactual"] = part(noun, color, moved, "WXYZ", key=key)
    made["noun_counterfactual"] = "ignored"
    return made


def rows(key=int):
    colors = ("red", "blue", "gray", "black", "teal")
    return [row(noun, colors[i], [colors[(i + j) % 5] for j in (1, 2, 3)], key) for noun in NOUNS for i in range(5)]


@pytest.fixture(scope="module")
def made():
    return banks_from_rows(rows(), 0, SIZES)


def test_prompts_are_verbatim_and_belong_to_their_family(made):
    banks, lexicon = made
    published = {r["prompt"]: r for r in rows()}
    for role, (bank, family, _) in banks.items():
        assert (bank.role, bank.size) == (role, SIZES[role])
        sources = mcqa.render(bank.source, lexicon)
        for base, source, index in zip(mcqa.render(bank.base, lexicon), sources, family, strict=True):
            assert source == published[base][f"{FAMILIES[index]}_counterfactual"]["prompt"]


def test_labels_by_hand(made):
    for bank, family, _ in made[0].values():
        assert set(bank.factual) == {0}
        # answerPosition: C and C; randomLetter: A and X; both: C and Y
        expected = np.array([[2, 0, 2], [2, 23, 24]])[:, family]
        np.testing.assert_array_equal(bank.labels, expected)
        assert set(MODEL.run(bank.base)["answer_pointer"]) == {1}


def test_spans_skip_the_article_that_is_the_correct_letter(made):
    banks, lexicon = made
    base = banks["fit"].bank.base
    found = mcqa.spans(base, lexicon)
    for text, subject, symbol in zip(
        mcqa.render(base, lexicon), found["subject"], found["correct_symbol"], strict=True
    ):
        color = text.split(".")[0].split()[-1]
        assert text[slice(*symbol)] == "A"
        assert text[symbol[0] - 1 :].startswith(f"\nA. {color}\n")
        assert text[: subject[1]].endswith(text[slice(*subject)])
        assert text[slice(*subject)] in {"box", "owl", "shoes", "lamp", "dog house"}
        assert text[subject[1]] == "?"


def test_no_question_is_in_two_banks(made):
    banks, lexicon = made
    questions = []
    for bank, family, group in banks.values():
        assert np.ptp(np.bincount(family, minlength=3)) <= 1
        questions.append({text.split("?")[0] for text in mcqa.render(bank.base, lexicon)})
        assert len(questions[-1]) == len(set(group))
    assert sum(map(len, questions)) == len(set.union(*questions)) == 10 + 4 + 3


def test_rows_of_one_question_stay_together():
    twins = [
        row(noun, "red", others) for noun in NOUNS for others in (("blue", "gray", "teal"), ("teal", "gray", "blue"))
    ]
    banks, lexicon = banks_from_rows(twins, 0, {"fit": 12, "test": 6})
    assert [len(set(banks[role].group)) for role in banks] == [2, 1]
    assert not set(banks["fit"].group) & set(banks["test"].group)
    assert len(set(mcqa.render(banks["test"].bank.base, lexicon))) == 2


def test_banks_depend_on_the_seed():
    first, again, other = (banks_from_rows(rows(), seed, SIZES)[0]["fit"].group for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_prompts_keep_capitals_braces_and_other_endings():
    odd = row("a box", "red", ("blue", "gray", "teal"))
    for prompt in (odd, *(odd[f"{family}_counterfactual"] for family in FAMILIES)):
        prompt["prompt"] = "{Say} " + prompt["prompt"].replace("red", "Red").replace("\nB. ", "\n B.  ") + " "
    banks, lexicon = banks_from_rows([odd], 0, {"test": 3})
    assert mcqa.render(banks["test"].bank.base, lexicon) == [odd["prompt"]] * 3
    text, span = odd["prompt"], mcqa.spans(banks["test"].bank.base, lexicon)["correct_symbol"][0]
    assert text[span[0] :].startswith("A. Red\n")
    assert banks["test"].bank.factual.tolist() == [0, 0, 0]


def test_answer_keys_may_be_letters():
    banks, _ = banks_from_rows(rows(key=str), 0, SIZES)
    assert set(banks["fit"].bank.factual) == {0}


def test_an_answer_key_that_disagrees_is_refused_or_ignored():
    wrong = rows()
    wrong[3]["randomLetter_counterfactual"]["answerKey"] = 0
    with pytest.raises(ValueError, match=r"got row 3 with answerKey 0, expected 1 or 'X', the choice 'black'"):
        banks_from_rows(wrong, 0, SIZES)
    banks, _ = banks_from_rows(wrong, 0, SIZES, answer_key="ignore")
    np.testing.assert_array_equal(banks["fit"].group, banks_from_rows(rows(), 0, SIZES)[0]["fit"].group)


def _without_family(made):
    made["randomLetter_counterfactual"] = None


def _without_question(made):
    made["prompt"] = made["prompt"].replace("What color", "Which color")


def _with_three_choices(made):
    made["prompt"] = made["prompt"].replace("\nD. ", "\nDelta ")


def _with_other_labels(made):
    made["choices"]["label"][0] = "E"


def _with_the_colour_missing(made):
    made["prompt"] = made["prompt"].replace(" red.", " pink.")


def _with_another_question(made):
    made["answerPosition_counterfactual"] = part("an owl", "red", ("blue", "red", "gray", "teal"), "BACD")


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (_without_family, r"row 1 without \['randomLetter_counterfactual'\]"),
        (_without_question, r"row 1 with prompt .*expected '\.\.\. is COLOR\. What color is NOUN\?'"),
        (_with_three_choices, r"row 1 with choices .*expected 4 lines 'X\. color'"),
        (_with_other_labels, r"row 1 with choices .*agree with the choices"),
        (_with_the_colour_missing, r"row 1 with choices .*expected the colour 'pink' once"),
        (_with_another_question, r"row 1 whose answerPosition_counterfactual asks about 'owl', 'red', expected"),
    ],
)
def test_malformed_rows_are_refused_by_number(spoil, message):
    two = [row("a box", "red", ("blue", "gray", "teal")) for _ in range(2)]
    spoil(two[1])
    with pytest.raises(ValueError, match=message):
        banks_from_rows(two, 0, {"test": 3})


def test_too_few_rows_are_refused():
    with pytest.raises(ValueError, match=r"got 25 rows of 25 questions, expected enough for .*'test' ran out"):
        banks_from_rows(rows(), 0, {"fit": 70, "test": 6})
    with pytest.raises(ValueError, match="got no rows"):
        banks_from_rows([], 0, SIZES)
    with pytest.raises(ValueError, match="got a bank named 'train'"):
        banks_from_rows(rows(), 0, {"train": 9})


def test_files_and_folders_are_pooled_by_split(tmp_path):
    data = rows()
    (tmp_path / "test-0.jsonl").write_text("\n".join(json.dumps(r) for r in data[:4]) + "\n")
    (tmp_path / "test-1.jsonl").write_text("\n".join(json.dumps(r) for r in data[4:8]))
    (tmp_path / "train.json").write_text(json.dumps(data[8:20]))
    (tmp_path / "README.md").write_text("ignored")
    assert read_rows(tmp_path) == data[:20]
    assert read_rows(tmp_path, limit=6) == data[:6] + data[8:14]
    assert read_rows(tmp_path / "train.json") == data[8:20]
    (tmp_path / "splits.json").write_text(json.dumps({"a": data[:3], "b": data[3:6]}))
    assert read_rows(str(tmp_path / "splits.json"), limit=2) == data[:2] + data[3:5]
    assert read_rows(data) == data


def test_a_place_without_rows_is_refused(tmp_path):
    for place in (tmp_path, tmp_path / "no.json", tmp_path / "rows.txt"):
        with pytest.raises(ValueError, match="expected a file ending in one of"):
            read_rows(place)
    (tmp_path / "wrong.json").write_text('["a", "b"]')
    with pytest.raises(ValueError, match="expected a list of rows"):
        read_rows(tmp_path)


def test_optional_packages_are_asked_for_by_their_extra(tmp_path, monkeypatch):
    (tmp_path / "train.parquet").write_bytes(b"")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="extra `hub`"):
        read_rows(tmp_path)
    with pytest.raises(ImportError, match="extra `hub`"):
        load_hub()


def test_the_hub_gives_every_split(monkeypatch):
    class Split(list):
        def select(self, indices):
            return [self[index] for index in indices]

    def load_dataset(name, config, revision):
        assert (name, config, revision) == ("mib-bench/copycolors_mcqa", "4_answer_choices", "abc")
        return {"train": Split(rows()[:5]), "test": Split(rows()[5:7])}

    monkeypatch.setitem(sys.modules, "datasets", SimpleNamespace(load_dataset=load_dataset))
    loaded = load_hub("mib-bench/copycolors_mcqa", "4_answer_choices", revision="abc", limit=3)
    assert loaded == rows()[:3] + rows()[5:7]
