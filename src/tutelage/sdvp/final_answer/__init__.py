"""Final-label training: the likelihood of the right answer through the program, exact, and differentiable in its modules."""

from tutelage.sdvp.final_answer.data import FinalAnswerGraphs, prepare
from tutelage.sdvp.final_answer.method import (
    FinalAnswerTraining,
    ModuleNetworks,
    StepwiseWithFinalAnswer,
    make_final_answer_job,
    train_jointly,
)
from tutelage.sdvp.final_answer.program_graph import Graph, build_graph

__all__ = [
    "FinalAnswerGraphs",
    "FinalAnswerTraining",
    "Graph",
    "ModuleNetworks",
    "StepwiseWithFinalAnswer",
    "build_graph",
    "prepare",
    "make_final_answer_job",
    "train_jointly",
]
