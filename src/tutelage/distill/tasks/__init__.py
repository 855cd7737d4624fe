"""Tasks: what a head predicts decides label loss, distance to a teacher, metrics and ignored labels.

One task a file; each is registered where it is defined. A job names its task (``task="segmentation"``, or
``task=Segmentation(ignore_index=0)`` with options), or it is inferred from shapes and types where these leave no doubt.
"""

from tutelage.distill.tasks.base import Fit, Task, TaskMeter, infer_task, make_task, task, tasks
from tutelage.distill.tasks.categorical import CategoricalTask, Rows
from tutelage.distill.tasks.classification import Classification
from tutelage.distill.tasks.detection import Detection
from tutelage.distill.tasks.embeddings import Embeddings
from tutelage.distill.tasks.keypoints import Keypoints
from tutelage.distill.tasks.metrics import Metric
from tutelage.distill.tasks.multi_label import MultiLabel
from tutelage.distill.tasks.regression import Regression
from tutelage.distill.tasks.restoration import Restoration
from tutelage.distill.tasks.segmentation import Segmentation
from tutelage.distill.tasks.tokens import LanguageModelling, TokenClassification

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
