"""`KneserNey`: an n-gram model of a text, the baseline that a network has to beat.

It predicts a character from the few characters before it, by counting. The order of a model is the
number of characters of context, as for Markov chains and PPM; its grams have one more. This module
knows token arrays, but not where they come from.

Grams are numbered order by order: the key of a gram is (number of its context) * V + last token,
and its number is the position of the key among the sorted keys of its order. So a key fits 64 bits
at any order, and the grams with the same context are side by side.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from charrnn_jax.errors import UserError

_SEGMENT = 1 << 20  # characters scored at once by `losses`; does not affect the result
_LARGEST_ORDER = 32  # each one needs memory of the size of the text
_NO_GRAM = -1  # number of a gram that would begin before the text


@dataclass(frozen=True)
class _Order:
    """The grams of one length and their counts.

    The arrays of counts have a 0 at their end, for the grams and contexts that do not occur.

    Attributes:
      keys: [G] sorted keys of the grams.
      counts: [G + 1] how often each gram counts.
      discounts: [4] what is subtracted from a count of 0, 1, 2, and 3 or more.
      totals: [contexts + 1] sum of the counts of the grams with this context.
      freed: [contexts + 1] sum of the discounts of the grams with this context.
    """

    keys: np.ndarray
    counts: np.ndarray
    discounts: np.ndarray
    totals: np.ndarray
    freed: np.ndarray

    @classmethod
    def make(
        cls, keys: np.ndarray, counts: np.ndarray, *, num_contexts: int, vocabulary_size: int
    ) -> "_Order":
        discounts, contexts = _discounts(counts), keys // vocabulary_size
        freed = discounts[np.minimum(counts, 3)]
        return cls(
            keys=keys,
            counts=np.append(counts, 0),
            discounts=discounts,
            totals=np.bincount(contexts, counts, minlength=num_contexts + 1),
            freed=np.bincount(contexts, freed, minlength=num_contexts + 1),
        )

    def find(self, keys: np.ndarray) -> np.ndarray:
        """Returns the number of the gram with each key; G if it does not occur."""
        numbers = np.searchsorted(self.keys, keys)
        found = np.append(self.keys, _NO_GRAM)[numbers] == keys
        return np.where(found, numbers, len(self.keys))

    def discount(self, counts: np.ndarray) -> np.ndarray:
        """Returns the discount of each count."""
        return self.discounts[np.minimum(counts, 3)]


@dataclass(frozen=True)
class KneserNey:
    """Interpolated modified Kneser-Ney smoothing, with three discounts for each order.

      p_m(w | h) = (max(c(hw) - D(c(hw)), 0) + sum_v D(c(hv)) p_(m-1)(w | h')) / sum_v c(hv)

    h' is the context h less its first character. At the highest order c(hw) is how often hw occurs;
    below, it is the number of different characters that occur before hw. A context that does not
    occur leaves p_(m-1) as it is. Below m = 0, no context, p is uniform, 1 / V, so every
    probability is above 0, and the probabilities of all V ids sum to 1.

    >>> model = KneserNey.fit([1, 2, 1, 2, 1, 3], order=1, vocabulary_size=4)
    >>> model.distribution([1]).round(3).tolist()
    [0.05, 0.117, 0.45, 0.383]

    Attributes:
      vocabulary_size: V, the number of ids.
      orders: counts of the grams with 0, 1, 2, ... tokens of context.

    Source: Chen & Goodman 1998, "An empirical study of smoothing techniques for language modeling",
    section 3 and equations 23 to 26.
    """

    vocabulary_size: int
    orders: tuple[_Order, ...]

    @classmethod
    def fit(
        cls, tokens: Sequence[int] | np.ndarray, *, order: int = 6, vocabulary_size: int
    ) -> "KneserNey":
        """Counts a text.

        Args:
          tokens: [num_chars] ids of the text, from 0 to V - 1; may be empty.
          order: length of the longest context, in tokens; grams have one more, so that order 5
            makes what is also called a 6-gram model.
          vocabulary_size: V, the number of ids, those that do not occur included.

        Raises:
          UserError: the order is out of range.
          ValueError: an id is not in the vocabulary.
        """
        if not 0 <= order <= _LARGEST_ORDER:
            raise UserError(
                f"the order of an n-gram model is {order}: it must be from 0 to {_LARGEST_ORDER}"
            )
        tokens = _checked(tokens, vocabulary_size)
        all_keys: list[np.ndarray] = []
        all_counts: list[np.ndarray] = []
        shorter = np.zeros(len(tokens), np.int64)  # number of the shorter gram that ends here
        contexts = shorter
        for length in range(1, order + 2):
            occurring = contexts * vocabulary_size + tokens[length - 1 :]
            keys, numbers = np.unique(occurring, return_inverse=True)
            if length > 1:  # each gram is one more character before its end
                ends = np.empty(len(keys), np.int64)
                ends[numbers] = shorter[1:]
                all_counts.append(np.bincount(ends, minlength=len(all_keys[-1])))
            all_keys.append(keys)
            shorter, contexts = numbers, numbers[:-1]
        all_counts.append(np.bincount(shorter, minlength=len(all_keys[-1])))
        sizes = [1, *map(len, all_keys)]
        orders = [
            _Order.make(keys, counts, num_contexts=size, vocabulary_size=vocabulary_size)
            for keys, counts, size in zip(all_keys, all_counts, sizes[:-1], strict=True)
        ]
        return cls(vocabulary_size, tuple(orders))

    @property
    def order(self) -> int:
        """Length of the longest context, in tokens."""
        return len(self.orders) - 1

    def losses(self, tokens: Sequence[int] | np.ndarray, *, window: int = 0) -> np.ndarray:
        """Scores a text.

        Args:
          tokens: [1 + num_chars] ids; the first is only context.
          window: number of characters after which the context is forgotten but for the character
            before, as in the protocol `Cold`; 0: never, as in `Carried`.

        Returns:
          [num_chars] losses in nats, float64.
        """
        tokens = _checked(tokens, self.vocabulary_size)
        num_chars = max(len(tokens) - 1, 0)
        pieces = [np.empty(0)]
        for start in range(0, num_chars, _SEGMENT):
            first = max(start - self.order, 0)
            piece = tokens[first : start + _SEGMENT + 1]
            known = np.arange(first, first + len(piece) - 1) + 1  # characters of context
            if window:
                known = (known - 1) % window + 1
            pieces.append(self._losses(piece, known=known)[start - first :])
        return np.concatenate(pieces)

    def losses_while_reading(self, tokens: Sequence[int] | np.ndarray) -> np.ndarray:
        """Scores a text, and counts each character of it as soon as it has been scored.

        Every loss is the one of counts that have all characters before it, neither fewer nor more.
        The discounts stay those of `fit`, and the model itself is not changed.

        Args:
          tokens: [1 + num_chars] ids; the first is only context.

        Returns:
          [num_chars] losses in nats, float64.
        """
        return self._losses(_checked(tokens, self.vocabulary_size), is_counted=True)

    def distribution(self, context: Sequence[int] | np.ndarray) -> np.ndarray:
        """Returns the probabilities of the next token.

        Args:
          context: [num_chars] ids before it; only the last `order` are used; may be empty.

        Returns:
          [V] probabilities, float64.
        """
        size = self.vocabulary_size
        context = _checked(context, size)
        context = context[max(len(context) - self.order, 0) :]
        ending = [numbers[-1:] for numbers, _ in self._grams(context)]
        contexts = np.concatenate([[0], *ending])
        p = np.full(size, 1 / size)
        for order, number in zip(self.orders, contexts.tolist(), strict=False):
            if number == _NO_GRAM or not order.totals[min(number, len(order.totals) - 1)]:
                break  # a longer context does not occur either
            first, end = np.searchsorted(order.keys, [number * size, (number + 1) * size])
            counts = order.counts[first:end]
            p *= order.freed[number]
            p[order.keys[first:end] - number * size] += counts - order.discount(counts)
            p /= order.totals[number]
        return p

    def _grams(self, tokens: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Numbers the grams of a text.

        Returns:
          For each order, numbers of the grams that end at each token, and whether the gram occurs
          for the first time, both [len(tokens)]. Grams that the model does not have are numbered
          after its own.
        """
        found = []
        contexts = np.zeros(len(tokens), np.int64)
        for order in self.orders:
            keys = contexts * self.vocabulary_size + tokens
            numbers = np.where(contexts == _NO_GRAM, _NO_GRAM, order.find(keys))
            is_first = np.zeros(len(tokens), bool)
            (unknown,) = np.nonzero(numbers == len(order.keys))
            _, firsts, ranks = np.unique(keys[unknown], return_index=True, return_inverse=True)
            numbers[unknown] += ranks
            is_first[unknown[firsts]] = True
            found.append((numbers, is_first))
            contexts = np.concatenate([[_NO_GRAM], numbers])[: len(tokens)]
        return found

    def _losses(
        self, tokens: np.ndarray, *, known: np.ndarray | None = None, is_counted: bool = False
    ) -> np.ndarray:
        """Scores a text; see `losses` and `losses_while_reading`.

        Args:
          tokens: [1 + n] ids.
          known: [n] number of characters that may be used as context; None: all.
          is_counted: whether a character is counted when it has been scored.
        """
        grams = self._grams(tokens)
        contexts = np.zeros(len(tokens[1:]), np.int64)
        p = np.full(len(contexts), 1 / self.vocabulary_size)
        for index, order in enumerate(self.orders):
            numbers = grams[index][0][1:]
            if known is not None:
                contexts = np.where(known < index, _NO_GRAM, contexts)
            counts = _at(order.counts, numbers)
            totals, freed = _at(order.totals, contexts), _at(order.freed, contexts)
            if is_counted:
                # Below the highest order, a gram counts when a character before it is new.
                is_highest = index == self.order
                adds = numbers != _NO_GRAM if is_highest else grams[index + 1][1][1:]
                counts = counts + _sum_of_earlier(numbers, adds.astype(np.int64))
                more = order.discount(counts + 1) - order.discount(counts)
                totals = totals + _sum_of_earlier(contexts, adds.astype(np.int64))
                freed = freed + _sum_of_earlier(contexts, adds * more)
            seen = totals > 0
            share = counts - order.discount(counts) + freed * p
            p = np.divide(share, totals, out=p, where=seen)
            contexts = grams[index][0][:-1]
        return -np.log(p)


def _checked(tokens: Sequence[int] | np.ndarray, vocabulary_size: int) -> np.ndarray:
    """Returns tokens as int64, after a check that they are ids of the vocabulary."""
    tokens = np.asarray(tokens, np.int64).reshape(-1)
    if tokens.size and not 0 <= tokens.min() <= tokens.max() < vocabulary_size:
        raise ValueError(
            f"token ids must be from 0 to {vocabulary_size - 1}; got {tokens.min()} to "
            f"{tokens.max()}"
        )
    return tokens


def _discounts(counts: np.ndarray) -> np.ndarray:
    """Returns D(0), D(1), D(2) and D(3 or more), from how many grams count 1, 2, 3 and 4.

      Y = n1 / (n1 + 2 n2),   D(k) = k - (k + 1) Y n_(k+1) / n_k

    In a small text some are 0, or D(k) is not between 0 and k. Then it is k / 2.
    """
    n = np.bincount(counts[(counts > 0) & (counts <= 4)], minlength=5).astype(float)
    k = np.arange(1, 4)
    with np.errstate(divide="ignore", invalid="ignore"):
        discounts = k - (k + 1) * n[1] / (n[1] + 2 * n[2]) * n[k + 1] / n[k]
    is_usable = np.isfinite(discounts) & (discounts > 0) & (discounts < k)
    return np.array([0.0, *np.where(is_usable, discounts, k / 2)])


def _at(table: np.ndarray, numbers: np.ndarray) -> np.ndarray:
    """Returns entries of a table whose last one stands for all numbers that it does not have."""
    return table[np.minimum(numbers, len(table) - 1)]  # _NO_GRAM is the last one, too


def _sum_of_earlier(numbers: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Returns, for each position, the sum of values at earlier positions with the same number."""
    if not len(numbers):
        return values
    order = np.argsort(numbers, kind="stable")
    grouped, added = numbers[order], values[order]
    before = np.cumsum(added) - added
    is_start = np.append(True, grouped[1:] != grouped[:-1])
    start = np.maximum.accumulate(np.where(is_start, np.arange(len(grouped)), 0))
    sums = np.empty_like(before)
    sums[order] = before - before[start]
    return sums
