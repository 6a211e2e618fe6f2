#pragma once

// Every model.

#include "nn/models/char_rnn.h"
#include "nn/models/gpt.h"
#include "nn/models/lenet5.h"
#include "nn/models/mlp.h"
#include "nn/models/preresnet.h"
#include "nn/models/resnet18.h"
#include "nn/models/vgg16.h"
#include "nn/models/vgg7.h"
#include "nn/models/vit.h"
