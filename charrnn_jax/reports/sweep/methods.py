"""What the report of a sweep says about how its numbers came about."""

METHODS = (
    "Loss: cross-entropy on the validation split at the last evaluation, in nats/char; "
    "bits/char is that divided by ln 2. Losses under another protocol cannot be compared with "
    "these.",
    "Seconds: on the clock. Runs that were trained together as one program share it, so theirs are "
    "those of the group.",
    "Configuration: all settings but the seed. The seed is what is drawn at random; runs with "
    "the same settings and seed count once, by their mean.",
    "95% interval: Student's t over seeds, mean ± t s / √n. It takes the losses as "
    "independent and roughly normal, and covers the choice of the seed alone: no other text, "
    "split or machine.",
    "Few seeds: t is 12.7 for 2 seeds, 4.3 for 3, 2.8 for 5 and 2.3 for 10. With 2 or 3, "
    "intervals are wide, nobody can check that the losses are normal, and only large "
    'differences are found: "not significant" does not mean equal. A single seed has no '
    "interval and no test (n/a).",
    "Runs that diverged, failed, were pruned or are not finished take no part in means, "
    "intervals and tests. They are counted and listed, and their configurations are marked.",
    "Comparison with the baseline: the mean difference between runs with the same seed, its t "
    "interval, and the two-sided paired t test. It takes the differences as independent and "
    "roughly normal. Seeds that are not done on both sides are left out. If all differences "
    "are equal there is no spread to measure by, and p is undefined (n/a).",
    "Correction: p (Holm) keeps the chance of any false alarm among all tests of this report "
    "below 5%. Significant: p (Holm) < 0.05.",
    "Winner's curse: the lowest of many means is low in part by luck, the more so the more "
    "there are. Measure the winner again, with new seeds and on a test split.",
    "Effects: an additive model with a term for every value of every setting, fitted by least "
    "squares. The share of a setting is what the fit loses without it, divided by all "
    "variance (eta squared, type II): in an unbalanced sweep that is what this setting alone "
    "explains, and what several explain alike stands apart. Settings that always vary "
    "together are joined; one that another determines is counted with it. Numbers that hardly "
    "repeat, as in a random search, are cut into quarters. Means of values are those of the "
    "fit over the configurations of the sweep: in a full grid, plain averages. Their "
    "intervals take the errors as equally large everywhere.",
)
