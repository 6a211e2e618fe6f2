#pragma once

// Every model.

#include "nn/models/mlp.h"
