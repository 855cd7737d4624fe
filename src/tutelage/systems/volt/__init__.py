"""Volt (Yilmaz et al., 2026, arXiv 2604.19609): a volume transformer, and its distillation from a convolutional teacher."""

from __future__ import annotations

from tutelage.systems.volt.augment import Points, SceneAugmentation, SceneDataset
from tutelage.systems.volt.instances import Instance, InstanceTraining, VoltInstances, found_instances
from tutelage.systems.volt.joint import JointScenes, JointTraining, JointVolt, TeacherPerDataset
from tutelage.systems.volt.method import Volt, lovasz_softmax
from tutelage.systems.volt.network import ConvUNet, VoltNetwork, Voxels
from tutelage.systems.volt.synthetic_rooms import CLASSES, room

__all__ = [
    "CLASSES",
    "ConvUNet",
    "Instance",
    "InstanceTraining",
    "JointScenes",
    "JointTraining",
    "JointVolt",
    "Points",
    "SceneAugmentation",
    "SceneDataset",
    "TeacherPerDataset",
    "Volt",
    "VoltInstances",
    "VoltNetwork",
    "Voxels",
    "found_instances",
    "lovasz_softmax",
    "room",
]
