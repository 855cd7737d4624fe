"""Every kind of question about a scene, by name."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from types import MappingProxyType

from tutelage.datasets.synthetic.questions.attribute import QUERY_TEXTS, choose, query, verify
from tutelage.datasets.synthetic.questions.base import QuestionType
from tutelage.datasets.synthetic.questions.comparison import compare, logic
from tutelage.datasets.synthetic.questions.counting import compare_count, count, exist
from tutelage.datasets.synthetic.questions.spatial import relation_choose, relation_exist, relation_query

QUESTION_TYPES: Mapping[str, QuestionType] = MappingProxyType(
    {
        **{f"{kind} query": partial(query, kind) for kind in QUERY_TEXTS},
        "verify": partial(verify, ("color", "pattern", "size")),
        "color verify": partial(verify, ("color",)),
        "choose": partial(choose, ("color", "pattern", "size")),
        "exist": exist,
        "count": count,
        "count compare": compare_count,
        "logic": partial(logic, ("color", "pattern", "size")),
        "color logic": partial(logic, ("color",)),
        "compare": partial(compare, ("color", "pattern")),
        "color compare": partial(compare, ("color",)),
        "color relation": partial(relation_query, "color"),
        "exist relation": relation_exist,
        "choose relation": relation_choose,
    }
)
"""Every kind of question that can be drafted."""
