"""CopyColors as published: the rows of the hub data sets as pair banks, prompts verbatim (PLOT, MCQA; MIB).

    jchang153/copycolors_mcqa                       the paper's data, no configuration
    mib-bench/copycolors_mcqa, 4_answer_choices     the same rows as MIB publishes them

A row is a base prompt and a counterfactual for each family:

    {"prompt": "A box is brown. What color is a box?\\nA. gray\\nB. black\\nC. white\\nD. brown\\nAnswer:",
     "choices": {"label": ["A", "B", "C", "D"], "text": ["gray", "black", "white", "brown"]}, "answerKey": 3,
     "answerPosition_counterfactual": {"prompt": ..., "choices": ..., "answerKey": ...}, ...}

The correct choice is the one whose text is the colour in the prompt. Columns of other counterfactuals (noun, color,
symbol) are ignored.

Each prompt is taken apart into a template and the words in its slots, and the lexicon returned with the banks writes it
again character by character, so `mcqa.render`, `spans` and `encode` serve these banks as they do the synthetic ones.

A group is all rows that ask the same question about the same colour, so no prompt is in two banks. The paper groups by
row; where a question occurs in several rows that lets a prompt into two banks.
"""

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np

from abstraction.causal import label_pairs
from abstraction.checks import whole
from abstraction.tasks.mcqa import (
    CHOICES,
    FAMILIES,
    INPUTS,
    LABELS,
    MODEL,
    OPTIONS,
    SIZES,
    VARIABLES,
    FamilyBank,
    Lexicon,
    bank_role,
    check_sizes,
    render,
)
from abstraction.tasks.symbols import LETTERS

ROWS_PER_SPLIT = 2000
"""How many rows the paper reads of every public split."""

Row = Mapping[str, Any]
AnswerKey = Literal["check", "ignore"]

_LISTED = ("label", "text")
_STATEMENT = re.compile(r"(?P<noun>.*?)\s+(?:is|are)\s+(?P<color>[^.\n]+)\.", re.DOTALL)
_QUESTION = re.compile(r"What colou?r (?:is|are) (?:(?:the|a|an) )?(?P<subject>[^?\n]+)\?", re.IGNORECASE)
_CHOICE = re.compile(r"^[ \t]*(?P<label>[A-Z])\.[ \t]+(?P<choice>\S.*?)[ \t]*$", re.MULTILINE)


class _Parsed(NamedTuple):
    """One prompt taken apart: everything that is not a word in a slot, and the words."""

    template: str
    subject: str
    color: str
    choices: tuple[str, ...]
    labels: tuple[str, ...]
    text: str


def read_rows(source: str | Path | Sequence[Row], *, limit: int = ROWS_PER_SPLIT) -> list[Row]:
    """Read and pool the rows of every split.

    Args:
      source: rows, returned as they are; or a JSON file (a list of rows, or lists by split), a JSON-lines or a Parquet
        file; or a folder of such files, where files whose names agree up to the first hyphen are one split.
      limit: rows to take from the front of each split in files.

    Raises:
      ValueError: there is no such file, or its contents are not rows.
      ImportError: a Parquet file without the extra `hub`.
    """
    whole("limit", limit, 1)
    if not isinstance(source, str | Path):
        return list(source)
    path = Path(source)
    kinds = {".json", ".jsonl", ".parquet"}
    files = sorted(file for file in path.iterdir() if file.suffix in kinds) if path.is_dir() else [path]
    if not files or any(not file.is_file() or file.suffix not in kinds for file in files):
        raise ValueError(f"got {str(source)!r}, expected a file ending in one of {sorted(kinds)} or a folder of them")
    splits: dict[str, list[Row]] = {}
    for file in files:
        for name, rows in _file_splits(file).items():
            splits.setdefault(name, []).extend(rows)
    return [row for rows in splits.values() for row in rows[:limit]]


def load_hub(
    name: str = "jchang153/copycolors_mcqa",
    config: str | None = None,
    *,
    revision: str | None = None,
    limit: int = ROWS_PER_SPLIT,
) -> list[Row]:
    """Download a data set from the Hugging Face hub and pool its public splits; name the revision to repeat a result.

    Raises:
      ImportError: the extra `hub` is not installed.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError(f"loading {name!r} needs the extra `hub`: {error}") from error
    splits = load_dataset(name, config, revision=revision)
    return [dict(row) for split in splits.values() for row in split.select(range(min(limit, len(split))))]


def banks_from_rows(
    rows: Sequence[Row],
    seed: int,
    sizes: Mapping[str, int] = SIZES,
    *,
    answer_key: AnswerKey = "check",
) -> tuple[dict[str, FamilyBank], Lexicon]:
    """Make one bank per role out of rows, with equal shares of the families and no question in common.

    Args:
      rows: as the hub has them.
      seed: of the order in which questions are dealt out.
      sizes: number of pairs by role.
      answer_key: whether `answerKey`, an index or a letter, must agree with the colour; the reference never reads it.

    Returns:
      The banks, and the lexicon that writes their prompts.

    Raises:
      ValueError: a row is malformed, or there are too few rows.
    """
    check_sizes(sizes)
    whole("seed", seed, 0)
    if answer_key not in get_args(AnswerKey):
        raise ValueError(f"got answer_key {answer_key!r}, expected one of {get_args(AnswerKey)}")
    parsed = [_row(row, index, answer_key) for index, row in enumerate(rows)]
    lexicon, table = _lexicon(parsed)
    questions = [(prompts[0].subject.lower(), prompts[0].color) for prompts in parsed]
    numbers = {question: number for number, question in enumerate(dict.fromkeys(questions))}
    group = np.array([numbers[question] for question in questions], int)
    dealt = iter(np.random.default_rng(seed).permutation(len(numbers)).tolist())
    banks = {}
    for role, size in sizes.items():
        chosen: list[int] = []
        while len(chosen) * len(FAMILIES) < size:
            question = next(dealt, None)
            if question is None:
                raise ValueError(
                    f"got {len(rows)} rows of {len(numbers)} questions, expected enough for {dict(sizes)} pairs of "
                    f"{len(FAMILIES)} families without a question in two banks; {role!r} ran out"
                )
            chosen += np.flatnonzero(group == question).tolist()
        place, family = np.divmod(np.arange(size), len(FAMILIES))
        row = np.array(chosen)[place]
        base, source = table[row, 0], table[row, 1 + family]
        setting = lambda values: {name: values[:, column] for column, name in enumerate(INPUTS)}
        bank = label_pairs(MODEL, setting(base), setting(source), variables=VARIABLES, role=bank_role(role))
        banks[role] = FamilyBank(bank, family, group[row])
    return banks, lexicon


def _file_splits(file: Path) -> dict[str, list[Row]]:
    name = file.stem.split("-")[0]
    if file.suffix == ".parquet":
        try:
            from pyarrow import parquet
        except ImportError as error:
            raise ImportError(f"reading {str(file)!r} needs the extra `hub`: {error}") from error
        try:
            return {name: parquet.read_table(file).to_pylist()}
        except ValueError as error:
            raise ValueError(f"got {str(file)!r}, expected a Parquet file: {error}") from error
    try:
        text = file.read_text(encoding="utf-8")
        lines = text.splitlines() if file.suffix == ".jsonl" else []
        content = [json.loads(line) for line in lines if line] if file.suffix == ".jsonl" else json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"got {str(file)!r}, expected JSON: {error}") from error
    splits = content if isinstance(content, dict) else {name: content}
    if not all(isinstance(rows, list) and all(isinstance(row, dict) for row in rows) for rows in splits.values()):
        raise ValueError(f"got {str(file)!r}, expected a list of rows, or lists of rows by split")
    return splits


def _row(row: Row, index: int, answer_key: AnswerKey) -> list[_Parsed]:
    """Take apart a row: its base prompt, then the source of every family."""
    columns = [f"{family}_counterfactual" for family in FAMILIES]
    if not isinstance(row, Mapping):
        raise ValueError(f"got row {index} of type {type(row).__name__}, expected prompt, choices and {columns}")
    missing = [column for column in ("prompt", "choices", *columns) if not row.get(column)]
    if missing:
        raise ValueError(f"got row {index} without {missing}, expected prompt, choices and {columns}")
    base, *sources = [_prompt(part, f"row {index}", answer_key) for part in (row, *(row[name] for name in columns))]
    for column, source in zip(columns, sources, strict=True):
        if (source.subject.lower(), source.color) != (base.subject.lower(), base.color):
            raise ValueError(
                f"got row {index} whose {column} asks about {source.subject!r}, {source.color!r}, expected the "
                f"question of the base, {base.subject!r}, {base.color!r}"
            )
    return [base, *sources]


def _prompt(part: Row, where: str, answer_key: AnswerKey) -> _Parsed:
    """Take apart one prompt and check it against the choices beside it.

    A word that is not written in lower case stays in the template, so that the prompt is written as it was.
    """
    listed = part.get("choices") or {} if isinstance(part, Mapping) else None
    if not isinstance(listed, Mapping) or any(not isinstance(listed.get(key, ()), Sequence) for key in _LISTED):
        raise ValueError(f"got {where} with {part!r}, expected a prompt and its choices, each with label and text")
    text = str(part.get("prompt", ""))
    statement = _STATEMENT.match(text)
    question = _QUESTION.search(text, statement.end()) if statement else None
    if statement is None or question is None:
        raise ValueError(f"got {where} with prompt {text!r}, expected '... is COLOR. What color is NOUN?'")
    lines = list(_CHOICE.finditer(text, question.end()))
    labels = tuple(line["label"] for line in lines)
    choices = tuple(line["choice"].lower() for line in lines)
    told = (tuple(str(label).strip() for label in listed.get("label", ())), _lowered(listed.get("text", ())))
    if len(lines) != OPTIONS or (labels, choices) != told or len(set(labels)) != OPTIONS:
        raise ValueError(
            f"got {where} with choices {listed} and prompt {text!r}, expected {OPTIONS} lines 'X. color' with "
            f"different letters that agree with the choices"
        )
    color = statement["color"].strip().lower()
    if choices.count(color) != 1:
        raise ValueError(f"got {where} with choices {choices}, expected the colour {color!r} once: {text!r}")
    key, pointer = part.get("answerKey"), choices.index(color)
    if answer_key == "check" and key is not None and str(key) not in (str(pointer), labels[pointer]):
        raise ValueError(
            f"got {where} with answerKey {key!r}, expected {pointer} or {labels[pointer]!r}, the choice {color!r}; "
            f"answer_key='ignore' goes by the colour alone"
        )
    words = [("color", statement.span("color"))]
    words += [(name, line.span("choice")) for name, line in zip(CHOICES, lines, strict=True)]
    slots = [(name, span) for name, span in words if text[slice(*span)] == text[slice(*span)].lower().strip()]
    slots += [(name, line.span("label")) for name, line in zip(LABELS, lines, strict=True)]
    slots += [("subject", question.span("subject"))]
    return _Parsed(_template(text, slots), question["subject"], color, choices, labels, text)


def _lowered(words: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(word).strip().lower() for word in words)


def _template(text: str, slots: Sequence[tuple[str, tuple[int, int]]]) -> str:
    pieces, done = [], 0
    for name, (start, end) in sorted(slots, key=lambda slot: slot[1]):
        pieces += [text[done:start].replace("{", "{{").replace("}", "}}"), "{", name, "}"]
        done = end
    return "".join([*pieces, text[done:].replace("{", "{{").replace("}", "}}")])


def _lexicon(parsed: Sequence[Sequence[_Parsed]]) -> tuple[Lexicon, np.ndarray]:
    """Number the words of all prompts: the lexicon, and the input variables `[rows, 1 + families, inputs]`."""
    everything = [prompt for prompts in parsed for prompt in prompts]
    if not everything:
        raise ValueError("got no rows, expected some")
    frames = {frame: i for i, frame in enumerate(dict.fromkeys((p.subject, p.template) for p in everything))}
    colors = {color: i for i, color in enumerate(dict.fromkeys(color for p in everything for color in p.choices))}
    lexicon = Lexicon(
        nouns=tuple(subject for subject, _ in frames),
        colors=tuple(colors),
        templates=tuple(template for _, template in frames),
    )
    words = [
        [colors[word] for word in (p.color, *p.choices)] + [LETTERS.index(x) for x in p.labels] for p in everything
    ]
    table = np.array([[frames[p.subject, p.template], *rest] for p, rest in zip(everything, words, strict=True)])
    written = render(dict(zip(INPUTS, table.T, strict=True)), lexicon)
    changed = [prompt.text for prompt, text in zip(everything, written, strict=True) if prompt.text != text]
    if changed:
        raise ValueError(f"got prompt {changed[0]!r}, expected one that its parts write again")
    return lexicon, table.reshape(len(parsed), 1 + len(FAMILIES), len(INPUTS))
