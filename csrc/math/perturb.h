// Closed-form perturbation of a linear diffusion: x_t = alpha_t x_0 + sigma_t eps.
#pragma once

#include "host_device.h"

namespace diffflow {

/// alpha_t is the mean factor, sigma_t >= 0 the standard deviation, eps a standard normal.
/// `Values` are one number or several.
template <class Values>
DF_HD Values perturb(Values x0, Values eps, Values alpha_t, Values sigma_t) {
  return alpha_t * x0 + sigma_t * eps;
}

}  // namespace diffflow
