#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/tensor.h"

namespace ulp::nn {

/// images: U8 (N, D), D the pixels of one image in (H, W, C) order; labels: I32 (N). Both on the CPU.
struct Split {
  Tensor images;
  Tensor labels;
};

struct Dataset {
  std::string name;
  Split train;
  Split test;
  Shape sample_shape;   // (H, W, C)
  int64_t classes = 0;  // labels lie in [0, classes)
  float scale = 1;      // images · scale lies in [0, 1]
};

/// "digits"         in the program: 1437 train and 360 test images of 8 × 8, pixels 0 … 16. Source: E. Alpaydin and
///                  C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
///                  archive.ics.uci.edu/dataset/80 (its test part, in its order; the last 360 rows are our test
///                  split). Licence CC BY 4.0.
/// "fashion-mnist"  from /usr/share/datasets/fashion-mnist, where Debian's package dataset-fashion-mnist puts it.
/// a directory      with the IDX files of MNIST's names, each plain or with .gz (plain wins): train-images-idx3-ubyte,
///                  train-labels-idx1-ubyte, t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte. classes is the greatest
///                  training label + 1. A directory that has one of the names above: write ./digits.
/// Throws ulp::Error that says which file is wrong, how, and what is allowed.
Dataset load_dataset(const std::string& name_or_directory);

/// Rows of 64 pixels 0 … 16 and a label 0 … 9, separated by commas. `name` is for messages, rows count from 1.
Split parse_digits(std::string_view csv, const std::string& name);

}  // namespace ulp::nn
