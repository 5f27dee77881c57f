"""The numbers a study starts from, in one place; ``docs/log.md`` has the measurements behind them."""

# The model.
LAYERS, DIM, HEADS, KV_HEADS, CONTEXT = 2, 64, 2, 2, 64
BATCH = 8

# The rule: fixed before the first run.
MARGIN_BITS_PER_BYTE = 0.005
CONFIDENCE = 0.95
POWER = 0.8
MINIMUM_SEEDS = 4
MINIMUM_RUNG_SEEDS = 3  # of a rung of a ladder, whose forecast joins several rungs
PAIRS_SHARE = 0.2  # of the error, added for pairs of better arms while another arm is not told from the baseline
# Simulated studies by this rule: which, their number, those with a false verdict.
# Each is a row of benchmarks/records/verdict-simulation.json.
SIMULATED = (("2 × 96, no difference", 1000, 24), ("1 × 48, no difference", 1000, 41))
# Real A/A studies, in the same way; benchmarks/records/aa-small.json and aa-default.json.
AA_STUDIES = (("1 layer × 48, 300 steps, six arms", 100, 2), ("2 layers × 64, 1,000 steps, six arms", 20, 0))
AA_STREAMS = ("private", "shared")  # how arms of an A/A study draw their feed-forward weights
JUDGE_SEEDS = 8
FIRST_JUDGE_SEED = 1
TUNE_SEEDS = 2
FIRST_TUNE_SEED = 1001
SEEDS_APART = 10_000  # from one replicate of a study to the next

# Tuning: a grid of LEARNING_RATES points whose (upper) middle is LEARNING_RATE, longer by one point at a time
# where an arm's best lies on its edge.
LEARNING_RATE = 1e-2
LEARNING_RATES = 3
MOST_LEARNING_RATES = 100
RATES_BETWEEN = 1e-30, 1e15  # whatever is asked for: a plan's file holds no others
LEARNING_RATE_FACTOR = 2.0
LEARNING_RATE_EXTENSIONS = 2
RATE_STEPS = 4  # the chosen rate lies on a grid as many times finer: on the parabola through the best three rates
CHECKED_RATES = 3  # around a carried rate
TUNE_FRACTION = 1.0  # steps of a tuning run, of a judged run's: shorter ones choose rates too high for some arms

# The recipe.
TRAINING = {
    "weight_decay": 0.1,
    "warmup_fraction": 0.2,
    "clip": 1.0,
    "evaluation_tokens": 65536,
    "evaluations": 1,
    "probe_every": 100,
}

# The length and precision of judged runs where nobody asks for others: one protocol on every machine, chosen so that
# the default study ends inside ten minutes on two cores with AVX2.
STEPS = 1000
PRECISION = "float32"

# The budget, where minutes are asked for.
MINIMUM_MINUTES = 1.0  # the reserve alone takes most of it
MINIMUM_STEPS = 200  # of a judged run: below it the order of arms says little about longer training
MAXIMUM_EPOCHS = 4  # repeating text up to four times is worth about as much as new text (arXiv:2305.16264)
EXTENSION_ALLOWANCE = 0.25  # tuning runs expected beyond the grid, of the grid's
SUSTAINED_SPEED = 0.9  # of the speed measured in a moment: what a busy machine keeps up for minutes
RESERVE_SECONDS = 45.0  # starting up, measuring, samples and the report

# A paper's column may be so wide, in inches: in less a figure has no room, and no reader of PDF shows hundreds.
COLUMN_INCHES = 2.5, 40
