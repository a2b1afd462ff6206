"""What the generator's formulas hold, for all that computes them; see `philox`."""

import math

MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
ROUNDS = 10

SQRT_HALF_BITS = 0x3FE6A09E667F3BCD
MINUS_LOG2 = -0.6931471805599453
LOG_TERMS = tuple(-2.0 / (2 * j + 1) for j in range(8))
SIN_TERMS = tuple((-1.0) ** j / math.factorial(2 * j + 1) for j in range(7))
