"""What the notebooks are made with: a notebook narrates, and all that it calls is in the library.

    show                the real source of a function, as a cell's result; long lines of text, broken
    puzzle              what a question is, how an answer is judged
    derivative, frozen  derivatives by complex step; the straight-through estimator held against them
    twin                a small model and its full-precision twin, trained while one waits
    pictures, kernel_pictures   one for each notebook
    cpu_kernels, gpu_kernels    a ladder climbed and questions; kernels interpreted and questions
    ahead               what becomes of guesses at the next tokens, and what they should bring
    exploding           the port that failed, and the model that it failed on
    ternary, layers_by_hand, a_block, train_nano, packing, generate_and_chain, formats, evaluate
                        questions, of the notebook of that name; of two also what they train

Nothing below imports this. `from bitnet_ref.walk import check, show` is how a notebook begins.
Read after: bench/conform. Read next: walk/show.
"""

from bitnet_ref.walk.puzzle import check
from bitnet_ref.walk.show import show, wrapped

__all__ = ["check", "show", "wrapped"]
