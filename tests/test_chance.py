"""What can be told of a classifier from its answers."""

import pytest

from pipeline.evaluation.chance import answers_needed, better_than_chance, more_held_out, never_told


@pytest.mark.parametrize(
    ("right", "answers", "chance", "verdict"),
    [
        (8, 32, 0.25, False),
        (16, 32, 0.25, True),
        (98, 100, 0.9, True),
        (93, 100, 0.9, None),  # as likely of one that is right in 95 % as of guesses
        (90, 100, 0.9, None),
        (900, 1000, 0.9, False),
        (6, 6, 0.5, None),  # 0.5^6 = 0.016
        (7, 7, 0.5, True),  # 0.5^7 = 0.008
        (6, 7, 0.5, None),
        (0, 6, 0.5, False),
    ],
)
def test_better_and_worse_are_both_to_be_shown(right, answers, chance, verdict):
    assert better_than_chance(right, answers, chance) is verdict


@pytest.mark.parametrize("chance", [0.1, 0.25, 0.5, 0.9])
def test_the_answers_needed_tell_whatever_they_are(chance):
    needed = answers_needed(chance)

    def undecided(answers):
        return [r for r in range(answers + 1) if better_than_chance(r, answers, chance) is None]

    assert undecided(needed - 1) and not undecided(needed) and not undecided(needed + 1)


def test_a_class_of_nearly_all_images_takes_more_than_are_held_out():
    assert answers_needed(0.999) is None
    assert more_held_out(None) == "use more images, or another features.extractor"
    assert more_held_out(85).startswith("use 850 images or more, 85 of them held out")


def test_so_few_that_even_right_ones_are_guesses():
    assert never_told(6, 0.5) and not never_told(7, 0.5)
    assert better_than_chance(6, 6, 0.5) is None and better_than_chance(7, 7, 0.5)
