#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "core/tensor.h"
#include "nn/data/text.h"

namespace ulp::nn {

/// images: U8 or F32 (N, D), D the values of one image in (H, W, C) order; labels: I32 (N). Both on the CPU.
/// Of a text: images are its tokens (L), U8 or I32, and there are no labels.
struct Split {
  Tensor images;
  Tensor labels;
};

struct Dataset {
  std::string name;
  Split train;
  Split test;
  Shape sample_shape;       // (H, W, C); of a text the tokens of a window
  int64_t classes = 0;      // labels lie in [0, classes)
  float scale = 1;          // U8 images · scale lie in [0, 1]; F32 images stand as they are
  Vocabulary vocabulary{};  // of a text

  bool is_text() const { return !vocabulary.empty(); }
};

/// "digits"         in the program: 1437 train and 360 test images of 8 × 8, pixels 0 … 16. Source: E. Alpaydin and
///                  C. Kaynak, Optical Recognition of Handwritten Digits, UCI Machine Learning Repository, 1998,
///                  archive.ics.uci.edu/dataset/80 (its test part, in its order; the last 360 rows are our test
///                  split). Licence CC BY 4.0.
/// "fashion-mnist"  from /usr/share/datasets/fashion-mnist, where Debian's package dataset-fashion-mnist puts it.
/// a directory      which is told by the files in it; classes is the greatest training label + 1 unless said otherwise:
///   idx             MNIST's names, each plain or with .gz (plain wins): train-images-idx3-ubyte, train-labels-idx1-ubyte,
///                   t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte
///   cifar10         CIFAR-10's binary version: data_batch_1.bin … data_batch_5.bin, test_batch.bin; 10 classes
///   cifar100        CIFAR-100's: train.bin, test.bin, the fine labels; 100 classes
///   cifar100-coarse the same with the coarse labels; 20 classes
///   npy             train_x.npy, train_y.npy, test_x.npy, test_y.npy: images (N, H, W) or (N, H, W, C) of bytes or fp32,
///                   labels (N) of any integer type
/// KIND:DIRECTORY   the same where the files would allow several, and for cifar100-coarse. A directory that holds
///                  cifar-10-batches-bin or cifar-100-binary, as CIFAR is unpacked, stands for that.
/// A directory that has one of the names above: write ./digits.
/// Throws ulp::Error that says which file is wrong, how, and what is allowed.
Dataset load_dataset(const std::string& name_or_directory);

/// "text:FILE": tokens for training and for validation, which is `test`. Errors begin with the name.
Dataset load_text_dataset(const std::string& name, const TextOptions& options);
/// The same tokens in windows of another length. Throws as load_text_dataset does for one that is too long.
Dataset with_context(const Dataset& text, int64_t context);
bool is_text_name(std::string_view name);

/// What load_dataset takes, in a few words.
inline constexpr const char* kDatasetNames =
    "digits, fashion-mnist or a folder with IDX (MNIST's names), CIFAR-10, CIFAR-100 or .npy "
    "files; KIND:FOLDER where KIND, one of idx, cifar10, cifar100, cifar100-coarse and npy, is not "
    "to be told by the files; text:FILE for models of texts";

/// The text that means the same data set in any working directory.
std::string lasting_dataset_name(const std::string& name_or_directory);

/// Rows of 64 pixels 0 … 16 and a label 0 … 9, separated by commas. `name` is for messages, rows count from 1.
Split parse_digits(std::string_view csv, const std::string& name);

}  // namespace ulp::nn
