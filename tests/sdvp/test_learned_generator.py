from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from tutelage import storage
from tutelage.distillation.data import Batch
from tutelage.errors import InputError
from tutelage.modules.symbolic import symbolic_modules
from tutelage.programs.generators import grammar
from tutelage.programs.generators.base import FailedProgram, GenerationRequest, RepairingGenerator, grammar_generator
from tutelage.programs.generators.paraphrases import QuestionProgramPair
from tutelage.programs.generators.program_templates import ProgramPart
from tutelage.programs.types import ParseFailure, Signature
from tutelage.programs.visprog import Parser
from tutelage.sdvp.learned_generator.evaluation import evaluation_sets, exact_match, unknown_words
from tutelage.sdvp.learned_generator.generator import LearnedGenerator, TokenCodec, first_positions, padded, steps_of
from tutelage.sdvp.learned_generator.network import PADDING, Seq2SeqNetwork, Seq2SeqTraining
from tutelage.sdvp.learned_generator.training import (
    QUICK,
    GeneratorTraining,
    build_training_set,
    encode_pairs,
    learned_generator,
    train_generator,
)

COUNT = "BOX0=LOC(image=IMAGE,object='{n}')\nANSWER0=COUNT(box=BOX0)\nFINAL_RESULT=RESULT(var=ANSWER0)"
COLOR = (
    "BOX0=LOC(image=IMAGE,object='{n}')\nIMAGE0=CROP(image=IMAGE,box=BOX0)\n"
    "ANSWER0=VQA(image=IMAGE0,question='What color is the {n}?')\nFINAL_RESULT=RESULT(var=ANSWER0)"
)
SIGNATURES = {name: module.signature for name, module in symbolic_modules().items()} | {
    "LOC": Signature({"image": "image", "object": "text"}, "boxes"),
    "VQA": Signature({"image": "image", "question": "text"}, "text"),
}


@pytest.fixture(scope="module")
def small() -> LearnedGenerator:
    """A writer that has learned two forms and to decline one, in seconds."""
    from tutelage.distillation.job import TrainingJob, TrainingSettings
    from tutelage.distillation.trainer import train

    torch.manual_seed(0)
    nouns = "circle star cross sign dog cat car tree house ball".split()
    book = [
        QuestionProgramPair(
            f"How many {n}s are there?" if n != "cross" else "How many crosses are there?", "image", COUNT.format(n=n)
        )
        for n in nouns
    ]
    book += [QuestionProgramPair(f"What color is the {n}?", "image", COLOR.format(n=n)) for n in nouns]
    book += [QuestionProgramPair(f"Why is the {n} here?", "none", None) for n in nouns]
    codes = TokenCodec.from_pairs(book)
    assert set(nouns) <= set(codes.arguments) and "how" not in codes.arguments
    rng = np.random.default_rng(0)
    data = encode_pairs(book * 8, codes, rng, unknown=0.4, lost=0.0)
    settings = TrainingSettings(steps=120, batch_size=32, lr=1e-2, warmup=10, clip=1.0, checkpoint_every=0, log_every=60)
    result = train(TrainingJob(Seq2SeqNetwork(len(codes.words), len(codes.lines), 32), None, Seq2SeqTraining(), data, settings))
    return LearnedGenerator(codes, result.student, min_probability=0.7)


def test_programs_are_written_for_nouns_that_were_never_read(small: LearnedGenerator) -> None:
    assert isinstance(small, RepairingGenerator)
    drafts = small.generate(
        [
            GenerationRequest("How many zebras are there?"),
            GenerationRequest("What color is the violin?"),
            GenerationRequest("what color is the STAR"),
        ]
    )
    texts = [draft.text for (draft,) in drafts]
    assert texts == [COUNT.format(n="zebra"), COLOR.format(n="violin"), COLOR.format(n="star")]
    for (draft,) in drafts:
        assert draft.failure is None and 0.7 <= draft.probability <= 1 and draft.source == small.name
        assert not isinstance(draft.program(Parser(SIGNATURES), ("IMAGE",)), ParseFailure)


def test_both_languages_are_written_from_the_same_lines(small: LearnedGenerator) -> None:
    ((viper,),) = small.generate([GenerationRequest("How many cats are there?", "viper")])
    assert 'image_patch.find("cat")' in viper.text and viper.text.startswith("def execute_command(image):")


def test_what_it_cannot_answer_is_a_typed_failure_that_names_unknown_words(small: LearnedGenerator) -> None:
    for question in ("Why is the dog here?", "Why is the zebra here?", "", "???"):
        ((draft,),) = small.generate([GenerationRequest(question)])
        assert isinstance(draft.failure, ParseFailure), question
    ((draft,),) = small.generate([GenerationRequest("How many lovely dogs are there?")])
    assert isinstance(draft.failure, ParseFailure) and "'lovely'" in str(draft.failure), "no word is passed over"
    assert small.unknown_words("How many lovely zebras are there?") == ("lovely", "zebra")
    assert small.unknown_words("How many dogs are there?") == ()


def test_less_probable_programs_are_declined(small: LearnedGenerator) -> None:
    strict = LearnedGenerator(small.codes, small.network, min_probability=1.1)
    ((draft,),) = strict.generate([GenerationRequest("How many dogs are there?")])
    assert isinstance(draft.failure, ParseFailure) and draft.text == COUNT.format(n="dog") and draft.probability > 0.7


def test_several_drafts_differ_and_come_best_first_however_many_are_asked_together(small: LearnedGenerator) -> None:
    free = LearnedGenerator(small.codes, small.network, min_probability=0.0)
    questions = ["How many dogs are there?", "What color is the cat?", "What color are dogs?"]
    together = free.generate([GenerationRequest(question) for question in questions], n=3)
    for question, drafts in zip(questions, together, strict=True):
        assert 1 <= len(drafts) <= 3 and len({draft.text for draft in drafts}) == len(drafts)
        ((best, *_),) = free.generate([GenerationRequest(question)], n=3)
        assert best.text == drafts[0].text and best.probability == pytest.approx(drafts[0].probability, abs=1e-5)
    assert together[0][0].text == free.generate([GenerationRequest(questions[0])])[0][0].text, (
        "the widest beam begins with the greedy one"
    )


def test_repair_writes_another_program_or_says_that_it_knows_none(small: LearnedGenerator) -> None:
    free = LearnedGenerator(small.codes, small.network, min_probability=0.0)
    request = GenerationRequest("How many dogs are there?")
    (draft,) = free.repair([FailedProgram(request, COUNT.format(n="dog"), ParseFailure("x"))])
    assert draft.text != COUNT.format(n="dog")
    certain = LearnedGenerator(small.codes, small.network, min_probability=0.9)
    (none,) = certain.repair([FailedProgram(request, certain.generate([request])[0][0].text, ParseFailure("x"))])
    assert none.failure is not None or none.text != COUNT.format(n="dog")


def test_a_writer_is_read_back_as_it_was_saved(small: LearnedGenerator, tmp_path: Path) -> None:
    small.save(tmp_path / "writer")
    again = LearnedGenerator.load(tmp_path / "writer", min_probability=small.min_probability)
    assert again.version == small.version and again.codes == small.codes
    asked = [GenerationRequest("How many zebras are there?")]
    assert again.generate(asked) == small.generate(asked)
    storage.write_json(tmp_path / "writer" / "codes.json", {"format": "other"})
    with pytest.raises(InputError, match="not a folder of a writer"):
        LearnedGenerator.load(tmp_path / "writer")


def test_the_loss_is_the_likelihood_of_true_steps_and_padding_does_not_count() -> None:
    labels = torch.tensor([[0, 2], [1, PADDING]])
    logprob = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]], [[0.2, 0.4, 0.4], [1e-9, 1e-9, 1e-9]]]))
    terms = Seq2SeqTraining().loss_terms(Batch(torch.zeros(2, 1), labels), {"logprob": logprob}, {})
    assert terms["step"].item() == pytest.approx(-np.log([0.5, 0.8, 0.4]).mean(), rel=1e-5)


def test_steps_copy_a_word_at_its_first_place_and_lines_never_compete_with_words() -> None:
    codes = TokenCodec(("padding", "unknown", "about image", "about pair", "about single", "a", "b"), ("", "none", "X@Y@"))
    assert steps_of([ProgramPart("X@Y@", ("b", "b"))], ("a", "b", "b"), codes) == [2, 3 + 2, 3 + 2, 0]
    assert steps_of(None, ("a",), codes) == [1]
    assert codes.encode(("b", "zebra"), "pair") == [3, 6, 1]
    assert first_positions(["", "a", "b", "a"]) == [0, 1, 2, 1]
    network = Seq2SeqNetwork(len(codes.words), 3, 8).eval()
    inputs = {"words": padded([[2, 5, 6, 5]], 0), "same": padded([[0, 1, 2, 1]], 0), "previous": torch.tensor([[3, 2]])}
    with torch.no_grad():
        found = network(inputs | {"copies": torch.tensor([[False, True]])})["logprob"].exp()[0]
    assert found.shape == (2, 3 + 4)
    assert found[0, :3].sum().item() == pytest.approx(1, abs=1e-5) and found[0, 3:].sum() == 0
    assert found[1, 3:].sum().item() == pytest.approx(1, abs=1e-5) and found[1, :3].sum() == 0
    assert found[1, 6] < 1e-6, "the second place of a word gives its share to the first"


def test_schooling_resumes_nothing_and_repeats_to_the_bit(tmp_path: Path) -> None:
    store = storage.ContentStore(tmp_path)
    first, again = learned_generator(7, store, config=QUICK), learned_generator(7, store, config=QUICK)
    assert first.version == again.version == train_generator(7, QUICK).version
    assert learned_generator(8, store, config=QUICK).version != first.version
    drafts = first.generate(
        [
            GenerationRequest("What color is the dog?"),
            GenerationRequest("The left image contains a dog.", "viper", ("LEFT", "RIGHT")),
        ],
        2,
    )
    assert all(draft.failure is not None or draft.text for group in drafts for draft in group), (
        "it knows nothing, and does not break"
    )


def test_the_schoolbook_holds_world_questions_wordings_and_nonsense() -> None:
    book = build_training_set(GeneratorTraining(scenes=4, sets=2, rounds=1, scrambled=0.2, swapped=1.0), 0)
    assert {pair.about for pair in book} == {"image", "pair", "single", "none"}
    assert all("image" not in pair.question for pair in book), "each is a picture or a photo"
    assert sum(pair.program is None for pair in book) > 20


def test_figures_are_shares_over_what_was_not_seen(tmp_path: Path) -> None:
    writer = learned_generator(7, storage.ContentStore(tmp_path), config=QUICK)
    book = [
        QuestionProgramPair("What color is the dog?", "image", COLOR.format(n="dog")),
        QuestionProgramPair("Why is the dog here?", "none", None),
    ]
    assert exact_match(lambda single: writer, book) == {"exact": 0, "written": 0, "declined": 1, "refused": 1}
    assert unknown_words(writer, [QuestionProgramPair("qqq zzz", "image", None)]) == 1
    assert (
        exact_match(grammar_generator, [book[0]._replace(program=grammar.generate(book[0].question, ("IMAGE",)).visprog)])["exact"]
        == 1
    )


@pytest.mark.slow
def test_the_embedded_writer_reads_what_it_has_not_seen() -> None:
    writer = train_generator(0)
    found = {
        name: exact_match(lambda single: LearnedGenerator(writer.codes, writer.network, single, writer.min_probability), book)
        for name, book in evaluation_sets(0).items()
    }
    assert found["world"]["written"] > 0.95 and found["new words"]["written"] > 0.9
    assert found["held-out wordings"]["exact"] > 0.7 and found["held-out wordings"]["refused"] > 0.7
