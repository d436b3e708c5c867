"""Golden values and finite differences of a table of losses, in one compiled program."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np

from tests.golden import weights

GOLDEN = weights.load("preference")
QUICK = {"xla_cpu_use_fusion_emitters": False, "xla_backend_optimization_level": 0}
"""Options that compile these many small operations in a third of the time."""


def given(name, dtype=None):
    """A golden array, as a jax array of the precision that is on."""
    return jnp.asarray(GOLDEN[name], dtype)


def minimised(method, outputs, batch):
    """The loss of a bound method: its terms, added up."""
    terms, _ = method.terms(outputs, batch)
    return sum(coefficient * mean.value() for coefficient, mean in terms.values())


def rows(function):
    """jit of x, ... -> (values [n, *B], gradients [n, *x.shape] of each row's sum)."""

    @partial(jax.jit, compiler_options=QUICK)
    def run(x, *rest):
        values, back = jax.vjp(lambda x: function(x, *rest), x)
        ones = jnp.eye(len(values), dtype=values.dtype)
        each = ones.reshape(*ones.shape, *[1] * (values.ndim - 1))
        return values, jax.vmap(back)(jnp.broadcast_to(each, (len(values), *values.shape)))[0]

    return run


class Table:
    """Means by case name, `means(x, frozen)`: x is differentiated, frozen is x held fixed."""

    def __init__(self, means, argument, golden=GOLDEN):
        self.names, self.argument, self.golden = [], argument, golden

        def stacked(x, frozen):
            self.names, values = zip(*means(x, frozen).items(), strict=True)
            return jnp.stack(values)

        with jax.enable_x64(True):
            x = jnp.asarray(argument, jnp.float64)
            self.run = rows(stacked)
            self.means = jax.jit(stacked, compiler_options=QUICK)
            self.values, self.gradients = map(np.asarray, self.run(x, x))

    def check_golden(self, case, rtol=1e-10):
        row = self.names.index(case)
        np.testing.assert_allclose(self.values[row], self.golden["values"][case], rtol=rtol)
        wanted = self.golden[f"grad_{case}"]
        atol = rtol * np.abs(wanted).max()
        np.testing.assert_allclose(self.gradients[row], wanted, rtol=rtol, atol=atol)

    def check_finite_differences(self, step=1e-5):
        """Slopes along random ways, what gets no gradient held where it was."""
        state = np.random.RandomState(0)
        with jax.enable_x64(True):
            x = jnp.asarray(self.argument, jnp.float64)
            for _ in range(2):
                way = state.standard_normal(x.shape)
                ahead, behind = (self.run(x + s * way, x)[0] for s in (step, -step))
                for name, gradient, slope in zip(
                    self.names, self.gradients, (ahead - behind) / (2 * step), strict=True
                ):
                    scale = np.sqrt(np.sum(gradient**2))
                    got = np.sum(gradient * way)
                    np.testing.assert_allclose(got, slope, atol=1e-7 * scale, err_msg=name)
                    assert scale > 1e-3, name

    def check_float32(self):
        """What training computes: values and gradients of the float64 program, in float32."""
        x = jnp.asarray(self.argument, jnp.float32)
        values, gradients = self.run(x, x)
        assert values.dtype == gradients.dtype == jnp.float32
        np.testing.assert_allclose(values, self.values, rtol=2e-5)
        for name, got, wanted in zip(self.names, gradients, self.gradients, strict=True):
            atol = 2e-5 * np.abs(wanted).max()
            np.testing.assert_allclose(got, wanted, atol=atol, err_msg=name)

    def check_bfloat16(self):
        """Values within the rounding of what they are of, as far as each number moves them."""
        x = jnp.asarray(self.argument, jnp.bfloat16)
        values = self.means(x, x)
        assert values.dtype == jnp.bfloat16
        axes = tuple(range(1, self.gradients.ndim))
        moved = np.abs(self.gradients * np.asarray(self.argument)).sum(axes)
        allowed = 4 * float(jnp.finfo(jnp.bfloat16).eps) * (moved + np.abs(self.values))
        apart = np.abs(np.asarray(values, np.float64) - self.values)
        assert apart.any()
        over = {n: (a, b) for n, a, b in zip(self.names, apart, allowed, strict=True) if a > b}
        assert not over
