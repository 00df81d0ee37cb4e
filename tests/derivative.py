"""The library's derivative checks, by the name that the tests know."""

from bitnet_ref.walk.derivative import (
    array_error,
    backward_error,
    complex_step,
    gradient_errors,
    model_gradients,
    model_loss,
    parameter_errors,
)

__all__ = ["array_error", "backward_error", "complex_step", "gradient_errors", "model_gradients",
           "model_loss", "parameter_errors"]
