"""Prompt sets with categories: built-in ones and the benchmarks' own files."""

import json

import pytest

from align.evaluation.benchmarks import choose, load_benchmark


def categories(prompts):
    rows = zip(prompts.prompts, prompts.metadata, strict=True)
    return {prompt: row["category"] for prompt, row in rows}


def test_scenes_have_the_categories_of_their_grammar(tmp_path):
    found = load_benchmark("scenes-heldout-a")
    assert set(categories(found).values()) == {
        "single", "color", "shape", "texture", "size", "2d_spatial", "3d_spatial", "numeracy",
        "complex",
    }  # fmt: skip
    file = tmp_path / "mine.txt"
    file.write_text("two green stars\na photo of a cat\n")
    assert categories(load_benchmark(str(file))) == {
        "two green stars": "numeracy",
        "a photo of a cat": "mine",
    }
    assert set(categories(load_benchmark("animals")).values()) == {"animals"}


def test_compbench_is_a_folder_of_files(tmp_path):
    (tmp_path / "color_val.txt").write_text("a green bench and a blue bowl\n\na red apple\n")
    (tmp_path / "3d_spatial_val.txt").write_text("a bag in front of a dog\n")
    assert categories(load_benchmark(str(tmp_path))) == {
        "a bag in front of a dog": "3d_spatial",
        "a green bench and a blue bowl": "color",
        "a red apple": "color",
    }
    (tmp_path / "shape_val.txt").write_text("\n")
    with pytest.raises(ValueError, match=r"shape_val\.txt has no prompts"):
        load_benchmark(str(tmp_path))


FILES = {
    "evaluation_metadata.jsonl": '{"tag": "counting", "include": [], "prompt": "two cats"}\n',
    "geneval2_data.jsonl": '{"prompt": "two cats", "skills": ["counting"], "vqa_list": []}\n',
    "counting_prompts.csv": "id,original_prompts\n1,two cats\n",
    "PartiPrompts.tsv": "Prompt\tCategory\tChallenge\ntwo cats\tcounting\tBasic\n",
    "DrawBench.csv": "Prompts,Category\ntwo cats,counting\n",
    "tifa_text_inputs.json": json.dumps([{"id": "1", "caption": "two cats", "source": "counting"}]),
    "genai_image.json": json.dumps({"0": {"prompt": "two cats", "basic_skills": ["counting"]}}),
}


@pytest.mark.parametrize("name", FILES)
def test_formats_of_the_benchmarks(tmp_path, name):
    (tmp_path / name).write_text(FILES[name])
    assert categories(load_benchmark(str(tmp_path / name))) == {"two cats": "counting"}


def test_dsg_has_a_row_a_question(tmp_path):
    file = tmp_path / "dsg-1k-anns.csv"
    file.write_text(
        "item_id,text,category_broad,question_natural_language\n"
        "a1,two cats,counting,is there a cat?\na1,two cats,counting,are there two?\n"
        "a2,a red dog,attribute,is there a dog?\n"
    )
    found = load_benchmark(str(file))
    assert categories(found) == {"two cats": "counting", "a red dog": "attribute"}
    assert found.metadata[0]["item_id"] == "a1"


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("a.csv", "words,x\ntwo cats,1\n", "has no column `prompt`; its columns are words, x"),
        ("a.csv", "prompt,category\ntwo cats,\n", r"prompt 1 of .* \('two cats'\) has no category"),
        ("a.csv", "prompt,category\n,b\n", "line 2: no prompt"),
        ("a.json", "{", "is not JSON"),
        ("a.jsonl", "", "has no prompts, so its category is empty"),
    ],
)
def test_bad_files(tmp_path, name, text, message):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=message):
        load_benchmark(str(tmp_path / name))


def test_missing_files_and_empty_folders(tmp_path):
    with pytest.raises(FileNotFoundError, match="no prompt file"):
        load_benchmark(str(tmp_path / "nothing.txt"))
    with pytest.raises(ValueError, match="has no prompt files"):
        load_benchmark(str(tmp_path))


def test_choosing_categories_and_the_first_prompts_of_each():
    scenes = load_benchmark("scenes")
    found = choose(scenes, "shape,single", 2)
    assert list(categories(found).values()) == ["shape", "shape", "single", "single"]
    assert found.prompts[:2] == load_benchmark("scenes-shape").prompts[:2]
    with pytest.raises(ValueError, match="category 'shapes' of scenes is empty; did you mean"):
        choose(scenes, "shapes", None)


def test_geneval_2_has_its_atoms_as_categories(tmp_path):
    rows = [
        {"prompt": f"{n} cats", "atom_count": n, "skills": ["count", "object", "attribute"][:n]}
        for n in (3, 4)
    ]
    file = tmp_path / "geneval2_data.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    assert categories(load_benchmark(str(file))) == {"3 cats": "3", "4 cats": "4"}


def test_every_question_of_a_prompt_is_kept(tmp_path):
    file = tmp_path / "dpg_bench.csv"
    file.write_text(
        "item_id,text,proposition_id,dependency,category_broad,question_natural_language\n"
        "a1,two cats,1,0,entity,is there a cat?\na1,two cats,2,1,other,are there two?\n"
        "a2,a dog,1,0,entity,is there a dog?\n"
    )
    found = load_benchmark(str(file))
    cats, dog = found.metadata
    assert cats["question_natural_language"] == ["is there a cat?", "are there two?"]
    assert (cats["item_id"], cats["dependency"]) == ("a1", ["0", "1"])
    assert cats["category"] == "dpg_bench"  # the questions' own are none of the prompt
    assert dog["question_natural_language"] == "is there a dog?"


def test_a_prompt_of_several_skills_has_no_category_by_its_first(tmp_path):
    file = tmp_path / "genai.json"
    file.write_text(json.dumps([{"prompt": "two cats at sea", "basic_skills": ["scene", "count"]}]))
    assert categories(load_benchmark(str(file))) == {"two cats at sea": "genai"}
