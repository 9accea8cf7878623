"""What the references read: token ids of the tests' prompts, tiny configurations, key shapes.

    python scripts/golden/inputs.py

writes tests/golden/rewards/inputs.json with this project's environment, so that
`scripts/golden/reference.py`, which runs in another one, needs none of its classes.
"""

import json
import sys
from pathlib import Path

TESTS = Path(__file__).parents[2] / "tests"
sys.path.insert(0, str(TESTS))

import tiny_rewards as tiny  # noqa: E402
from tiny import clip_tokenizer  # noqa: E402
from transformers import BertTokenizer  # noqa: E402

from align.language.decompose import decompose  # noqa: E402
from align.rewards.blip_vqa import phrases  # noqa: E402
from align.rewards.clip_t5 import QUESTION, SYSTEM  # noqa: E402
from align.rewards.mps import CONDITION  # noqa: E402


def main() -> None:
    words, folder = clip_tokenizer(), tiny.GOLDEN / ".words"
    tiny.save_bert_words(folder)
    bert, t5 = BertTokenizer.from_pretrained(folder), tiny.t5_tokenizer()
    (folder / "vocab.txt").unlink()
    folder.rmdir()
    whole = {"padding": "max_length", "truncation": True, "max_length": tiny.WINDOW}
    content = {
        "prompts": tiny.PROMPTS,
        "clip_ids": [words(prompt).input_ids for prompt in tiny.PROMPTS],
        "mps_ids": [words(prompt, **whole).input_ids for prompt in tiny.PROMPTS],
        "mps_condition": words(CONDITION, **whole).input_ids,
        "owlvit_ids": [words(f"a photo of a {noun}").input_ids for noun in ("cube", "dog")],
        "bert_ids": [bert(prompt).input_ids for prompt in tiny.PROMPTS],
        "phrase_ids": [[bert(q).input_ids for q in phrases(p)] for p in tiny.PROMPTS],
        "assertion_ids": [[bert(a.question).input_ids for a in decompose(p)] for p in tiny.PROMPTS],
        "yes_no": bert("yes no", add_special_tokens=False).input_ids,
        "t5_ids": [
            [t5(SYSTEM).input_ids, t5(f"\n{QUESTION.format(p)} ASSISTANT: ").input_ids]
            for p in tiny.PROMPTS
        ],
        "t5_answer": t5("Yes").input_ids,
        "t5_words": len(t5),
        "t5_unknown": t5.unk_token_id,
        "t5_rows": tiny.T5_ROWS,
        "open_clip": tiny.OPEN_CLIP,
        "clip": tiny.CLIP,
        "blip": tiny.BLIP,
        "image_reward": tiny.IMAGE_REWARD,
        "t5": tiny.T5,
        "owlvit": tiny.OWLVIT,
        "yolos": tiny.YOLOS,
    }
    (tiny.GOLDEN / "inputs.json").write_text(json.dumps(content) + "\n")


if __name__ == "__main__":
    main()
