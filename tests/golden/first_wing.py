"""All golden outcomes of the first wing, by name: federation, LoRA, wireless, privacy, pictures."""

import averages
import leaks
import pictures
import radio
import runs

OUTCOMES = {
    **averages.OUTCOMES,
    **runs.OUTCOMES,
    **radio.OUTCOMES,
    **pictures.OUTCOMES,
    **leaks.OUTCOMES,
}
