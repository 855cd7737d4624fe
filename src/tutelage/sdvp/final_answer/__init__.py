"""Final-label training: the likelihood of the right answer through the program, exact, and differentiable in its modules."""

from tutelage.sdvp.final_answer.data import FinalData, prepare
from tutelage.sdvp.final_answer.program_graph import Graph, build
from tutelage.sdvp.final_answer.method import FinalLabel, Networks, StepwiseFinal, stepwise_final, teach

__all__ = ["FinalData", "FinalLabel", "Graph", "Networks", "StepwiseFinal", "build", "prepare", "stepwise_final", "teach"]
