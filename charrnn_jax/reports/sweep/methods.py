"""How the numbers of a sweep were obtained, as explained in its report."""

METHODS = (
    "Loss: cross-entropy on the validation split at the last evaluation, in nats/char. "
    "Bits/char: the loss divided by ln 2. Losses under another protocol cannot be compared with "
    "these.",
    "Seconds: wall-clock time. Runs that were trained together as one program all show the time of "
    "the group.",
    "Configuration: all settings except the seed. The seeds are the random sample; runs with the "
    "same settings and seed count once, by their mean.",
    "95% interval: Student's t interval over seeds, mean ± t s / √n. It assumes independent and "
    "roughly normal losses. It covers only the choice of the seed, not of the text, the split or "
    "the machine.",
    "Few seeds: t is 12.7 for 2 seeds, 4.3 for 3, 2.8 for 5 and 2.3 for 10. With 2 or 3 seeds, "
    "intervals are wide, normality cannot be checked, and only large differences are found: "
    '"not significant" does not mean equal. A single seed has no interval and no test (n/a).',
    "Runs that diverged, failed, were pruned or are not finished are left out of means, "
    "intervals and tests. They are counted and listed, and their configurations are marked.",
    "Comparison with the baseline: the mean difference between runs with the same seed, its t "
    "interval, and the two-sided paired t test. It assumes independent and roughly normal "
    "differences, and uses only the seeds that are done in both. If all differences are equal, "
    "there is no spread to compare them with, and p is undefined (n/a).",
    "Correction: with p (Holm), the chance of any false positive among all tests of this report "
    "stays below 5%. Significant: p (Holm) < 0.05.",
    "Winner's curse: the lowest of many means is low partly by luck, and the more configurations "
    "there are, the more so. Measure the winner again with new seeds, on a test split.",
    "Effects: an additive model with a term for every value of every setting, fitted by least "
    "squares. The share of a setting is the variance that the fit cannot explain without it, "
    "divided by the total variance (eta squared, type II). In an unbalanced sweep this is what "
    "the setting alone explains; what several settings explain equally well is listed apart. "
    "Settings that always vary together are joined; a setting that another one determines is "
    "counted with it. Numbers that rarely repeat, as in a random search, are grouped into "
    "quarters. The mean loss at a value is the mean of the fit over the configurations of the "
    "sweep: in a full grid, a plain average. Its interval assumes that the errors are equally "
    "large everywhere.",
)
