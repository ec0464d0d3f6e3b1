"""What is claimed of the exercises of every lab from 03 on: `TestExercises = claims_on(EXERCISES, WRONG)`."""

import pytest

from fedgen_lab.exercises import check
from fedgen_lab.exercises.checks import find


def claims_on(exercises, wrong):
    """A test class for a lab's `exercises`; `wrong`: {key: {words of the message: a typical wrong answer}}."""

    class Claims:
        @pytest.mark.parametrize("exercise", exercises, ids=lambda exercise: exercise.key)
        def test_the_solution_passes(self, exercise):
            assert check(exercise.key, exercise.run_solution()).passed

        @pytest.mark.parametrize(
            "key, words", [(key, words) for key in wrong for words in wrong[key]]
        )
        def test_each_typical_mistake_hears_its_own_message(self, key, words):
            verdict = find(key).check(wrong[key][words])
            assert verdict.state == "failed"
            assert words in verdict.message
            assert verdict.question.endswith("?")

        @pytest.mark.parametrize("key", wrong)
        def test_no_two_mistakes_hear_the_same(self, key):
            messages = [find(key).check(answer).message for answer in wrong[key].values()]
            assert len(set(messages)) == len(messages)

        @pytest.mark.parametrize("key", wrong)
        def test_the_untouched_stub_is_not_tried_yet(self, key):
            def stub(*args):
                raise NotImplementedError("write your answer here")

            assert check(key, stub).state == "not tried"

        @pytest.mark.parametrize("exercise", exercises, ids=lambda exercise: exercise.key)
        def test_hints_do_not_give_the_whole_solution_away_at_once(self, exercise):
            code = exercise.solution.strip().splitlines()[-1].strip()
            assert code not in exercise.hints[0] and code not in exercise.hints[1]

    return Claims
