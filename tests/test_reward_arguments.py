"""What rewards' arguments say, slopes picture by picture, questions of benchmark files."""

import json
import weakref
from dataclasses import replace

import pytest
import torch
from torch.autograd.graph import saved_tensors_hooks

from align.language.prompts import load_prompts
from align.rewards.arguments import read_argument, read_question
from align.rewards.catalogue import REWARDS, Source, sources
from align.rewards.expression import parse_expression
from align.rewards.slopes import by_picture, to_bytes
from align.rewards.weights import missing_files


@pytest.fixture
def toy(monkeypatch):
    kind = replace(
        REWARDS["clip"], words=("ask", "mean", "model"), numbers=("pixels",), any_repository=True
    )
    monkeypatch.setitem(REWARDS, "toy", kind)


def test_words_numbers_models_and_modes(toy):
    given = read_argument("toy", "soft;a/b;mean=x;pixels:300", ("soft",))
    assert (given.model, given.mode) == ("a/b", "soft")
    assert given.words == {"mean": "x"}
    assert given.whole("pixels", 1) == 300
    assert given.choice("mean", ("y", "x")) == "x"
    assert read_argument("toy", "model=a/b").model == "a/b"
    assert read_argument("toy", None).choice("mean", ("y", "x")) == "y"
    assert sources("toy", "mean=x;a/b")[0] == Source("a/b", ("config.json",), True)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("pixels=3;mean=x", r"numbers take a colon, pixels:3; allowed are ask=…, mean=…, model=…,"),
        ("mean:x", "words take an equals sign, mean=x"),
        ("pixels:many", "'many' is no number"),
        ("size=3", "cannot be read at 'size=3'"),
        ("mean=x;mean=y", "gives mean twice"),
        ("a/b;c/d", "gives model twice"),
        ("a/b;model=c/d", "gives model twice"),
        ("mean=", "cannot be read at 'mean='"),
    ],
)
def test_what_cannot_be_read_is_named(toy, argument, message):
    with pytest.raises(ValueError, match=message):
        read_argument("toy", argument)


def test_values_are_checked(toy):
    with pytest.raises(ValueError, match="toy:mean=z: mean is 'z'; "):
        read_argument("toy", "mean=z").choice("mean", ("x", "y"))
    for number in ("0.5", "0"):
        with pytest.raises(ValueError, match="a whole number of at least 1"):
            read_argument("toy", f"pixels:{number}").whole("pixels", 1)


def test_a_number_behind_a_setting_is_not_taken_for_the_weight(toy):
    (found,) = parse_expression("toy:a/b;pixels:300=0.2").items
    assert (found[0].argument, found[1]) == ("a/b;pixels:300", 0.2)
    with pytest.raises(ValueError, match=r"0.2 may be a weight or .* 'pixels'.*write pixels:0.2"):
        parse_expression("toy:pixels=0.2")
    with pytest.raises(ValueError, match=r"value of 'mean'; for the value write toy:mean=7=1"):
        parse_expression("toy:mean=7")


def test_questions_come_from_files(toy, tmp_path):
    file = tmp_path / "question.txt"
    file.write_text('Is "{prompt}", (really) here?\n')
    given = read_argument("toy", f"ask=@{file}")
    assert read_question(given, "ask", "x", ("{prompt}",)) == 'Is "{prompt}", (really) here?'
    assert read_question(read_argument("toy", None), "ask", "x", ("{prompt}",)) == "x"
    file.write_text("Is it here?")
    with pytest.raises(ValueError, match=r"does not say where the prompt goes; write \{prompt\}"):
        read_question(given, "ask", "x", ("{prompt}",))
    with pytest.raises(ValueError, match="write the text to a file, ask=@FILE"):
        read_question(read_argument("toy", "ask=what"), "ask", "x", ("{prompt}",))
    with pytest.raises(FileNotFoundError, match=r"toy:ask=@none.txt: there is no file none\.txt"):
        read_question(read_argument("toy", "ask=@none.txt"), "ask", "x", ("{prompt}",))


def test_one_of_several_files_is_enough(tmp_path):
    source = Source("a/b", ("config.json",), any_of=("template.json", "template.jinja"))
    (tmp_path / "config.json").write_text("{}")
    assert missing_files(source, tmp_path) == ["template.json"]
    (tmp_path / "template.jinja").write_text("")
    assert missing_files(source, tmp_path) == []


# --- slopes ---------------------------------------------------------------------------------------


def deep(weights):
    def score(picture, index):
        x = picture
        for weight in weights:
            x = torch.tanh(x * weight)
        return (index + 1) * x.mean((1, 2, 3))

    return score


def test_slopes_are_those_of_plain_autograd():
    images = torch.rand(3, 3, 8, 8, dtype=torch.float64).requires_grad_()
    score = deep([1.0, -2.0, 3.0])
    scores = by_picture(score, images)
    plain = torch.cat([score(images[i : i + 1], i) for i in range(3)])
    assert torch.equal(scores, plain)
    ours, theirs = (torch.autograd.grad(s.square().sum(), images)[0] for s in (scores, plain))
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)
    with torch.no_grad():
        assert torch.equal(by_picture(score, images), plain)


def peak(count: int) -> int:
    """Bytes that graphs hold at once at most."""
    live, most = set(), [0]

    class Held:
        def __init__(self, tensor):
            self.tensor, self.size = tensor, tensor.nbytes
            live.add(weakref.ref(self, live.discard))
            most[0] = max(most[0], sum(ref().size for ref in live if ref() is not None))

    images = torch.rand(count, 3, 8, 8).requires_grad_()
    with saved_tensors_hooks(Held, lambda held: held.tensor):
        by_picture(deep([1.0] * 100), images).sum().backward()
    assert images.grad is not None
    return most[0]


def test_a_batch_takes_the_memory_of_one_picture():
    assert peak(8) <= 1.1 * peak(1)


def test_bytes_are_rounded_as_a_png_has_them():
    images = torch.tensor([0.0, 0.4999 / 255, 0.5001 / 255, 1.0005]).view(1, 1, 2, 2)
    images = images.expand(1, 3, 2, 2)
    assert (to_bytes(images)[0, 0].flatten() * 255).tolist() == [0, 0, 1, 255]


# --- benchmark files ------------------------------------------------------------------------------


def test_questions_of_dsg_are_gathered_for_training_too(tmp_path):
    file = tmp_path / "dsg.csv"
    file.write_text(
        "item_id,text,proposition_id,dependency,category_broad,question_natural_language\n"
        "a1,two cats on a mat,1,0,entity,is there a cat?\n"
        "a1,two cats on a mat,2,1,other,are there two?\n"
        'a1,two cats on a mat,3,"1,2",relation,are they on a mat?\n'
        "a2,a dog,1,0,entity,is there a dog?\n"
    )
    prompts = load_prompts(file)
    assert prompts.prompts == ["two cats on a mat", "a dog"]
    first, second, third = prompts.metadata[0]["questions"]
    assert first == {
        "id": "1", "question": "is there a cat?", "parents": [], "category": "entity"
    }  # fmt: skip
    assert (second["parents"], third["parents"]) == (["1"], ["1", "2"])
    assert prompts.metadata[0]["item_id"] == "a1"


def test_questions_of_tifa_keep_their_answers(tmp_path):
    rows = [
        {"id": "1", "caption": "two cats", "question": q, "choices": c, "answer": a,
         "element_type": t}
        for q, c, a, t in (("how many?", ["1", "2"], "2", "counting"),
                           ("is there a cat?", ["yes", "no"], "yes", "animal"))
    ]  # fmt: skip
    (tmp_path / "tifa.json").write_text(json.dumps(rows))
    (row,) = load_prompts(tmp_path / "tifa.json").metadata
    counted, seen = row["questions"]
    assert counted == {
        "id": "1", "question": "how many?", "parents": [], "category": "counting",
        "choices": ["1", "2"], "answer": "2",
    }  # fmt: skip
    assert (seen["id"], seen["category"]) == ("2", "animal")
