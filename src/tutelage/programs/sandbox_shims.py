"""Modules that language models import and the sandbox lacks, as far as programs use them. This file runs inside the sandbox.

A module is an object: ``np.mean`` is the attribute ``mean`` of the one in ``numpy``.
"""

import collections
import functools
import math


def _flat(values):
    """The numbers of a list, or of nested lists, in order."""
    if isinstance(values, (list, tuple, set, range)):
        return [number for part in values for number in _flat(part)]
    return [values]


def _mean(values, axis=None):
    numbers = _flat(values)
    if not numbers:
        raise ValueError("mean of no number")
    return sum(numbers) / len(numbers)


def _median(values, axis=None):
    numbers = sorted(_flat(values))
    if not numbers:
        raise ValueError("median of no number")
    middle = len(numbers) // 2
    return numbers[middle] if len(numbers) % 2 else (numbers[middle - 1] + numbers[middle]) / 2


def _percentile(values, q, axis=None):
    """Linear interpolation between the closest ranks, as numpy's default."""
    numbers = sorted(_flat(values))
    if not numbers:
        raise ValueError("percentile of no number")
    place = (len(numbers) - 1) * q / 100
    low = math.floor(place)
    high = min(low + 1, len(numbers) - 1)
    return numbers[low] + (numbers[high] - numbers[low]) * (place - low)


def _variance(values, less):
    numbers = _flat(values)
    if len(numbers) <= less:
        raise ValueError("variance of too few numbers")
    middle = sum(numbers) / len(numbers)
    return sum([(number - middle) ** 2 for number in numbers]) / (len(numbers) - less)


def _mode(values):
    counts = {}
    for value in values:
        counts[value] = counts.get(value, 0) + 1
    if not counts:
        raise ValueError("mode of no value")
    return max(counts, key=lambda value: counts[value])


def _each(function):
    """``function`` of a number, or of every number of a list."""

    def apply(values, *others):
        if isinstance(values, (list, tuple)):
            return [apply(value, *others) for value in values]
        return function(values, *others)

    return apply


def _norm(values):
    return math.sqrt(sum([number * number for number in _flat(values)]))


def _unique(values):
    return sorted(set(_flat(values)))


def _module_table():
    """The stand-ins by name; ``_modules['numpy']`` is what ``import numpy`` gives."""
    return {"numpy": _numpy(), "statistics": _statistics(), "string": _string(), "operator": _operator(),
            "collections": _collections(), "functools": _functools()}  # fmt: skip


class _numpy:
    def __init__(self):
        self.mean, self.average, self.median, self.percentile = _mean, _mean, _median, _percentile
        self.quantile = lambda values, q: _percentile(values, 100 * q)
        self.std = lambda values: math.sqrt(_variance(values, 0))
        self.var = lambda values: _variance(values, 0)
        self.array, self.asarray, self.unique = list, list, _unique
        self.round, self.abs, self.sqrt = _each(round), _each(abs), _each(math.sqrt)
        self.absolute, self.around, self.floor, self.ceil = _each(abs), _each(round), _each(math.floor), _each(math.ceil)
        self.sum = lambda values: sum(_flat(values))
        self.max = self.amax = lambda values: max(_flat(values))
        self.min = self.amin = lambda values: min(_flat(values))
        self.argmax = lambda values: list(values).index(max(values))
        self.argmin = lambda values: list(values).index(min(values))
        self.argsort = lambda values: sorted(range(len(values)), key=lambda at: values[at])
        self.sort = sorted
        self.any, self.all = any, all
        self.arange = lambda *bounds: list(range(*bounds))
        self.zeros, self.ones = lambda count: [0.0] * count, lambda count: [1.0] * count
        self.clip = lambda value, low, high: max(low, min(high, value))
        self.hypot, self.isnan = math.hypot, math.isnan
        self.pi, self.inf, self.nan = math.pi, math.inf, math.nan
        self.int32 = self.int64 = int
        self.float32 = self.float64 = float
        self.linalg = _linalg()


class _linalg:
    def __init__(self):
        self.norm = _norm


class _statistics:
    def __init__(self):
        self.mean, self.fmean, self.median, self.mode = _mean, _mean, _median, _mode
        self.stdev, self.pstdev = lambda values: math.sqrt(_variance(values, 1)), lambda values: math.sqrt(_variance(values, 0))
        self.variance, self.pvariance = lambda values: _variance(values, 1), lambda values: _variance(values, 0)


class _string:
    def __init__(self):
        self.ascii_lowercase = "abcdefghijklmnopqrstuvwxyz"
        self.ascii_uppercase = self.ascii_lowercase.upper()
        self.ascii_letters = self.ascii_lowercase + self.ascii_uppercase
        self.digits = "0123456789"
        self.punctuation = "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~"
        self.whitespace = " \t\n\r\x0b\x0c"


class _operator:
    def __init__(self):
        self.itemgetter = lambda key: lambda value: value[key]
        self.add, self.sub, self.mul = lambda a, b: a + b, lambda a, b: a - b, lambda a, b: a * b
        self.truediv = lambda a, b: a / b
        self.eq, self.ne, self.not_ = lambda a, b: a == b, lambda a, b: a != b, lambda a: not a
        self.lt, self.le, self.gt, self.ge = (
            lambda a, b: a < b,
            lambda a, b: a <= b,
            lambda a, b: a > b,
            lambda a, b: a >= b,
        )


class _collections:
    def __init__(self):
        self.Counter, self.defaultdict, self.deque = collections.Counter, collections.defaultdict, collections.deque
        self.namedtuple, self.OrderedDict = collections.namedtuple, dict


class _functools:
    def __init__(self):
        self.reduce, self.partial, self.lru_cache = functools.reduce, functools.partial, functools.lru_cache
        self.cache = lambda function: function
        self.wraps = lambda original: lambda function: function
