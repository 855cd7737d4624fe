"""Tasks: what a head predicts decides label loss, distance to a teacher, metrics and ignored labels.

One task a file; each is registered where it is defined. A job names its task (``task="segmentation"``, or
``task=Segmentation(ignore_index=0)`` with options), or it is inferred from shapes and types where these leave no doubt.
"""

from tutelage.distillation.tasks.base import Fit, Task, TaskMeter, infer_task, make_task, task, tasks
from tutelage.distillation.tasks.categorical import CategoricalTask, Rows
from tutelage.distillation.tasks.classification import Classification
from tutelage.distillation.tasks.detection import Detection
from tutelage.distillation.tasks.embeddings import Embeddings
from tutelage.distillation.tasks.keypoints import Keypoints
from tutelage.distillation.tasks.metrics import Metric
from tutelage.distillation.tasks.multi_label import MultiLabel
from tutelage.distillation.tasks.regression import Regression
from tutelage.distillation.tasks.restoration import Restoration
from tutelage.distillation.tasks.segmentation import Segmentation
from tutelage.distillation.tasks.tokens import LanguageModelling, TokenClassification

__all__ = [
    "CategoricalTask",
    "Classification",
    "Detection",
    "Embeddings",
    "Fit",
    "Keypoints",
    "LanguageModelling",
    "Metric",
    "MultiLabel",
    "Regression",
    "Restoration",
    "Rows",
    "Segmentation",
    "Task",
    "TaskMeter",
    "TokenClassification",
    "infer_task",
    "make_task",
    "task",
    "tasks",
]
