"""Comments that say a value are held against what is printed, and others are not."""

from pathlib import Path

import pytest

from tests.printed import COMMENT, NUMBER, TEXT, check

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("comment", "printed"),
    [
        ("140 20 40", "140 20 40"),
        ("0.16 and 0.78 nats", "tensor(0.1649) tensor(0.7812)"),
        ("-1.2e-3", "-0.00121"),
        ("Dataset(x: (2, 1) float64)", "Dataset(x: (2, 1) float64)"),
        ("nats: what the network cannot know", "tensor(3.)"),
    ],
)
def test_a_true_comment_and_words_pass(comment: str, printed: str) -> None:
    check(comment, printed)


@pytest.mark.parametrize(
    ("comment", "printed"),
    [
        ("140 20 41", "140 20 40"),
        ("140 20", "140 20 40"),
        ("0.18 and 0.78 nats", "tensor(0.1649) tensor(0.7812)"),
        ("Dataset(x: (2, 1) float64)", "Dataset(x: (2, 1) float32)"),
    ],
)
def test_a_comment_that_says_another_value_is_told(comment: str, printed: str) -> None:
    with pytest.raises(AssertionError, match=comment.split(" ", maxsplit=1)[0].replace("(", r"\(")):
        check(comment, printed)


def test_an_examples_print_reads_its_own_line(tmp_path: Path) -> None:
    page = tmp_path / "page.py"
    page.write_text("from tests.printed import checked_print as print\nprint(1 + 1)  # 3\n")
    with pytest.raises(AssertionError, match="'2' is printed where '3' is said"):
        exec(compile(page.read_text(), str(page), "exec"), {})


def test_the_pages_have_values_to_check() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    said = [found[1] for page in pages for line in page.read_text().splitlines() if (found := COMMENT.search(line))]
    assert sum(bool(TEXT.match(one) or NUMBER.match(one)) for one in said) >= 4
