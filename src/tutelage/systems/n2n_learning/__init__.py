"""Shrink a trained classifier of your own:

```python
from tutelage.systems.n2n_learning import N2NLearning, train_candidate
from tutelage.distillation.job import TrainingSettings

found = N2NLearning(size=50_000).search(teacher, data, held_out, seed=0, folder="n2n", pool=2)
print(found.best.parameters, found.teacher_parameters, found.best.accuracy)
student = train_candidate(teacher, data, TrainingSettings(epochs=50), found.best.layers, seed=0)
```

`data` and `held_out` are `TensorData` of images; `held_out` is a part of the training set with labels. The same call with the
same folder goes on from the candidates that were trained. It is a search, not a method of a recipe: a recipe trains the winner.

**What it does.** The teacher is read as a list of leaf layers. A bidirectional LSTM keeps or removes each of them; from the best
child, an autoregressive LSTM then multiplies kernel, stride, channels and padding of each layer by a factor of 0.25 to 1. Each
child gets fresh weights, is trained for a few epochs on `MSE(student_logits, teacher_logits)`, and earns

`R = R_a R_c`, `R_c = C (2 - C)`, `C = 1 - parameters(student) / parameters(teacher)`,
`R_a = accuracy(student) / accuracy(teacher)`,

or -1 if it is no network or no smaller. Where it breaks a constraint, `R = (eps - 1) + eps R_a R_c` with
`eps = max(0, 1 - e / 15)^4` at update `e`. The policies learn by REINFORCE: `mean_i (R_i - b) sum_t grad log pi(a_t)`, `b` the
moving average of earlier mean rewards. An architecture that was seen is not trained again. `found.policies` may be saved with
`save_policy` and given to the search of another teacher as `policies=`.

**In SDVP**: shrink a trained classification module to a size budget before it is served.

**Differences from the authors' code.** Each rollout has its own advantage (the code gives all of them the batch's mean reward, here
`advantage="batch_mean"`); the LSTM of the second policy is trained too; `eps` does not rise again after update 15; rewards come
from held-out training images, not from the test set. No action is drawn for the type of a layer, which the code draws and ignores.

**Limits.** Teachers: `small-cnn`, `resnet`, or an `nn.Sequential` of plain layers and `BasicBlock`. Weights are never inherited
from the teacher, and there is no actor-critic variant. The teacher is asked anew for each candidate. With several workers, their
processes are started at every update.

Source: "N2N Learning: Network to Network Compression via Policy Gradient Reinforcement Learning" (Ashok, Rhinehart, Beainy, Kitani,
ICLR 2018, arXiv 1709.06030).
"""

from __future__ import annotations

from tutelage.systems.n2n_learning.architecture import (
    InvalidArchitecture,
    Layer,
    LayerNetwork,
    build,
    layers_of,
    parameters,
    removable,
    remove,
    shrink,
    shrinkable,
    states,
)
from tutelage.systems.n2n_learning.policies import (
    PolicySettings,
    RemovalPolicy,
    ShrinkagePolicy,
    compression_reward,
    load_policy,
    make_policy,
    optimize_policy,
    penalty_share,
    reward,
    save_policy,
)
from tutelage.systems.n2n_learning.search import Candidate, N2NLearning, SearchResult, train_candidate

__all__ = [
    "Candidate",
    "InvalidArchitecture",
    "Layer",
    "LayerNetwork",
    "N2NLearning",
    "PolicySettings",
    "RemovalPolicy",
    "SearchResult",
    "ShrinkagePolicy",
    "build",
    "compression_reward",
    "layers_of",
    "load_policy",
    "make_policy",
    "optimize_policy",
    "parameters",
    "penalty_share",
    "remove",
    "removable",
    "reward",
    "save_policy",
    "shrink",
    "shrinkable",
    "states",
    "train_candidate",
]
