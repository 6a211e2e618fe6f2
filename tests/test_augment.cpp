#include <doctest/doctest.h>
#include <omp.h>

#include <cmath>
#include <cstring>
#include <vector>

#include "nn/augmentation.h"
#include "nn/batches.h"
#include "tests/kernel_rows.h"
#include "tests/op_table.h"

using namespace ulp;
using namespace ulp::tests;

namespace {

const Stream kStream = stream_of(kCpu);

struct Sizes {
  int height, width, channels;
  int values() const { return height * width * channels; }
};

Tensor bytes(int64_t images, const Sizes& sizes, uint64_t seed) {
  const RandomSource random(RandomKey{seed, 5, 0, nullptr});
  std::vector<uint8_t> all(static_cast<size_t>(images * sizes.values()));
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint8_t>(random.word(i));
  return Tensor::from(all, {images, sizes.values()});
}

Tensor numbers(std::vector<int32_t> values) {
  const auto n = static_cast<int64_t>(values.size());
  return Tensor::from(values, {n});
}

/// The augmented image as its steps say, each on a copy of its own: pad with zeros, cut the window out, mirror, normalise, blank
/// the square. The draws are those that AugmentRowsArgs documents.
std::vector<float> reference(const std::vector<float>& image, const Sizes& s,
                             const Augmentation& how, const std::vector<float>& factor,
                             const std::vector<float>& summand, uint64_t seed, uint32_t stream,
                             uint32_t epoch, uint64_t position) {
  const auto words = [&](uint64_t group) {
    return philox4x32(
        {{static_cast<uint32_t>(group), static_cast<uint32_t>(group >> 32), stream, epoch}},
        static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
  };
  const PhiloxWords first = words(2 * position), second = words(2 * position + 1);
  const auto choose = [](uint32_t word, int n) {
    return static_cast<int>(std::floor(std::ldexp(static_cast<double>(word) * n, -32)));
  };
  const int pad = how.crop, wide = s.width + 2 * pad, tall = s.height + 2 * pad;
  std::vector<float> padded(static_cast<size_t>(wide * tall * s.channels), 0.0f);
  for (int y = 0; y < s.height; ++y)
    for (int x = 0; x < s.width * s.channels; ++x)
      padded[static_cast<size_t>(((y + pad) * wide + pad) * s.channels + x)] =
          image[static_cast<size_t>(y * s.width * s.channels + x)];
  const int top = pad == 0 ? 0 : choose(first.word[0], 2 * pad + 1),
            left = pad == 0 ? 0 : choose(first.word[1], 2 * pad + 1);
  std::vector<float> out(static_cast<size_t>(s.values()));
  const auto at = [&](int y, int x, int c) {
    return static_cast<size_t>((y * s.width + x) * s.channels + c);
  };
  for (int y = 0; y < s.height; ++y)
    for (int x = 0; x < s.width; ++x)
      for (int c = 0; c < s.channels; ++c)
        out[at(y, x, c)] =
            padded[static_cast<size_t>(((y + top) * wide + x + left) * s.channels + c)];
  if (how.flip && first.word[2] >= 0x80000000u) {
    const std::vector<float> before = out;
    for (int y = 0; y < s.height; ++y)
      for (int x = 0; x < s.width; ++x)
        for (int c = 0; c < s.channels; ++c) out[at(y, s.width - 1 - x, c)] = before[at(y, x, c)];
  }
  for (int i = 0; i < s.values(); ++i) {
    const auto c = static_cast<size_t>(i % s.channels);
    out[static_cast<size_t>(i)] = std::fma(out[static_cast<size_t>(i)], factor[c], summand[c]);
  }
  if (how.cutout > 0) {
    const int y0 = choose(second.word[0], s.height) - how.cutout / 2,
              x0 = choose(second.word[1], s.width) - how.cutout / 2;
    for (int y = std::max(0, y0); y < std::min(s.height, y0 + how.cutout); ++y)
      for (int x = std::max(0, x0); x < std::min(s.width, x0 + how.cutout); ++x)
        for (int c = 0; c < s.channels; ++c) out[at(y, x, c)] = 0.0f;
  }
  return out;
}

nn::Dataset small_set(int64_t train, int64_t test, const Sizes& s, bool floats = false) {
  nn::Dataset data;
  data.name = "small";
  data.sample_shape = {s.height, s.width, s.channels};
  data.classes = 7;
  data.scale = floats ? 1.0f : 1.0f / 255;
  const auto split = [&](int64_t n, uint64_t seed) {
    std::vector<int32_t> labels;
    for (int64_t i = 0; i < n; ++i) labels.push_back(static_cast<int32_t>(i % 7));
    Tensor images = bytes(n, s, seed);
    if (floats) images = random_tensor({n, s.values()}, -2, 2, seed);
    return nn::Split{images, numbers(labels)};
  };
  data.train = split(train, 1);
  data.test = split(test, 2);
  return data;
}

/// All batches of an epoch in one piece.
std::vector<float> epoch_of(nn::Batches& batches, int64_t epoch, std::vector<int32_t>* labels) {
  std::vector<float> all;
  for (const nn::Batch& batch : batches.shuffled(epoch)) {
    const std::vector<float> images = batch.inputs.to_floats();
    all.insert(all.end(), images.begin(), images.end());
    if (labels != nullptr)
      labels->insert(labels->end(), batch.labels.data<int32_t>(),
                     batch.labels.data<int32_t>() + batch.labels.numel());
  }
  return all;
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  return a.size() == b.size() && std::memcmp(a.data(), b.data(), a.size() * sizeof(float)) == 0;
}

}  // namespace

void ulp::tests::check_augment_rows() {
  const Tensor in = Tensor::from(std::vector<uint8_t>{1, 2, 3, 4}, {2, 2});
  Tensor out = Tensor::empty({1, 2}, DType::F32, kCpu), label = numbers({-1});
  StepState state;
  state.batch_offset = 1;
  AugmentRowsArgs args;
  args.in = in;
  args.indices = numbers({0, 1});
  args.labels = numbers({5, 6});
  args.out = out;
  args.out_labels = label;
  args.scale = 0.5f;
  args.width = 2;
  args.state = &state;
  kernels::augment_rows(kStream, args);
  CHECK(out.to_floats() == std::vector<float>{1.5f, 2});
  CHECK(label.data<int32_t>()[0] == 6);
  CHECK(state.batch_offset == 2);
}

TEST_SUITE("augment") {
  TEST_CASE("one image at a time, as its steps say") {
    const Sizes all[] = {{1, 1, 1}, {2, 3, 1}, {5, 7, 3}, {8, 6, 2}, {32, 32, 3}};
    for (const Sizes& s : all) {
      const int side = std::min(s.height, s.width);
      std::vector<Augmentation> hows{{}, {0, true, 0}, {0, false, side}, {0, false, 1}};
      if (side > 1) {
        hows.push_back({side - 1, false, 0});
        hows.push_back({1, true, side / 2});
      }
      if (side > 4) hows.push_back({4, true, 3});
      for (const Augmentation& how : hows)
        for (const bool floats : {false, true}) {
          CAPTURE(nn::to_string(how));
          CAPTURE(s.height);
          CAPTURE(s.width);
          constexpr int64_t kImages = 23, kRows = 17, kBegin = 1000000;
          Tensor in = bytes(kImages, s, 3);
          if (floats) in = random_tensor({kImages, s.values()}, -3, 3, 4);
          std::vector<int32_t> order(kBegin + kRows);
          for (size_t i = 0; i < order.size(); ++i)
            order[i] = static_cast<int32_t>(i * 7 % kImages);
          std::vector<int32_t> labels;
          for (int i = 0; i < kImages; ++i) labels.push_back(100 + i);
          std::vector<float> factor, summand, normal;
          for (int c = 0; c < s.channels; ++c) {
            factor.push_back(0.3f + static_cast<float>(c));
            summand.push_back(-0.7f * static_cast<float>(c + 1));
          }
          normal = factor;
          normal.insert(normal.end(), summand.begin(), summand.end());
          Tensor out = Tensor::empty({kRows, s.values()}, DType::F32, kCpu);
          Tensor out_labels = Tensor::empty({kRows}, DType::I32, kCpu);
          StepState epoch, state;
          epoch.random_step = 41;
          state.random_step = 99;  // has no influence
          state.batch_offset = kBegin;
          AugmentRowsArgs args;
          args.in = in;
          args.indices = numbers(order);
          args.labels = numbers(labels);
          args.out = out;
          args.out_labels = out_labels;
          args.normal = Tensor::from(normal, {2, s.channels});
          args.height = s.height;
          args.width = s.width;
          args.channels = s.channels;
          args.how = how;
          args.key = {0x123456789ABCDEF0, 77, 0, &epoch};
          args.state = &state;
          kernels::augment_rows(kStream, args);
          CHECK(state.batch_offset == kBegin + kRows);
          const std::vector<float> got = out.to_floats(), from = in.to_floats();
          bool right = true;
          for (int64_t n = 0; n < kRows; ++n) {
            const int32_t row = order[static_cast<size_t>(kBegin + n)];
            right = right && out_labels.data<int32_t>()[n] == 100 + row;
            const auto first = from.begin() + row * s.values();
            const std::vector<float> want =
                reference({first, first + s.values()}, s, how, factor, summand, 0x123456789ABCDEF0,
                          77, 41, static_cast<uint64_t>(kBegin + n));
            const auto mine = got.begin() + n * s.values();
            right = right && same(want, {mine, mine + s.values()});
          }
          CHECK(right);
        }
    }
  }

  TEST_CASE("shifts, mirrors and holes are spread evenly and independently") {
    const Augmentation how{4, true, 8};
    constexpr int kSide = 32, kCount = 200000;
    RandomKey key{11, 22, 0, nullptr};
    const RandomSource random(key);
    std::vector<int> dy(9), dx(9), joint(81), row(kSide), column(kSide);
    int flips = 0, flips_right = 0;
    for (int i = 0; i < kCount; ++i) {
      const ImageChange c = draw_change(how, random, i, kSide, kSide);
      REQUIRE((c.dy >= -4 && c.dy <= 4 && c.dx >= -4 && c.dx <= 4));
      ++dy[static_cast<size_t>(c.dy + 4)];
      ++dx[static_cast<size_t>(c.dx + 4)];
      ++joint[static_cast<size_t>((c.dy + 4) * 9 + c.dx + 4)];
      ++row[static_cast<size_t>(c.cut_y + 4)];
      ++column[static_cast<size_t>(c.cut_x + 4)];
      flips += c.flip;
      flips_right += c.flip && c.dx > 0;
    }
    const auto near = [&](int count, double share) {  // within five deviations
      const double wanted = kCount * share;
      return std::abs(count - wanted) <= 5 * std::sqrt(wanted * (1 - share));
    };
    for (const int count : dy) CHECK(near(count, 1.0 / 9));
    for (const int count : dx) CHECK(near(count, 1.0 / 9));
    for (const int count : joint) CHECK(near(count, 1.0 / 81));
    for (const int count : row) CHECK(near(count, 1.0 / kSide));
    for (const int count : column) CHECK(near(count, 1.0 / kSide));
    CHECK(near(flips, 0.5));
    CHECK(near(flips_right, 0.5 * 4 / 9));
    // The limits of the words.
    CHECK(choose_below(0, 9) == 0);
    CHECK(choose_below(0xFFFFFFFFu, 9) == 8);
    CHECK(choose_below(0xFFFFFFFFu, 1) == 0);
  }

  TEST_CASE("what a sample becomes follows from seed, epoch and its place in the epoch alone") {
    const Sizes s{9, 8, 3};
    const nn::Dataset data = small_set(103, 10, s);
    nn::BatchOptions options;
    options.augmentation = {3, true, 4};
    options.normalisation = nn::channel_statistics(data);
    const auto epoch = [&](uint64_t seed, int64_t number, int64_t size, int64_t resident,
                           uint32_t random_step, std::vector<int32_t>* labels = nullptr) {
      Run run(kCpu, seed);
      StepState state;
      state.random_step = random_step;
      run.set_state(state);
      nn::BatchOptions own = options;
      own.resident_bytes = resident;
      nn::Batches batches(run, data, data.train, size, own);
      CHECK(batches.resident() == (resident > 103 * s.values()));
      return epoch_of(batches, number, labels);
    };
    std::vector<int32_t> labels, staged_labels;
    const std::vector<float> first = epoch(5, 2, 10, INT64_MAX, 1, &labels);
    CHECK(first.size() == static_cast<size_t>(100 * s.values()));
    CHECK(same(first, epoch(5, 2, 10, INT64_MAX, 777)));
    CHECK(same(first, epoch(5, 2, 50, INT64_MAX, 1)));
    CHECK(same(first, epoch(5, 2, 10, 0, 1, &staged_labels)));
    CHECK(labels == staged_labels);
    CHECK(same(first, epoch(5, 2, 20, 103 * s.values(), 1)));
    CHECK(!same(first, epoch(5, 3, 10, INT64_MAX, 1)));
    CHECK(!same(first, epoch(6, 2, 10, INT64_MAX, 1)));
    const int threads = omp_get_max_threads();
    for (const int n : {1, 3, 8}) {
      omp_set_num_threads(n);
      CHECK(same(first, epoch(5, 2, 100, INT64_MAX, 1)));
    }
    omp_set_num_threads(threads);
    // Gone on with from the middle.
    Run run(kCpu, 5);
    nn::Batches batches(run, data, data.train, 10, options);
    batches.shuffle(2, 40);
    CHECK(same(batches.next().inputs.to_floats(),
               {first.begin() + 40 * s.values(), first.begin() + 50 * s.values()}));
  }

  TEST_CASE("samples in order are normalised and never augmented, wherever they are") {
    const Sizes s{6, 5, 2};
    for (const bool floats : {false, true}) {
      const nn::Dataset data = small_set(30, 23, s, floats);
      nn::BatchOptions options;
      options.augmentation = {2, true, 3};
      options.normalisation = {{0.25, -1}, {2, 0.5}};
      Run run;
      nn::Batches here(run, data, data.test, 10, options);
      options.resident_bytes = 0;
      nn::Batches there(run, data, data.test, 10, options);
      const std::vector<float> from = data.test.images.to_floats();
      size_t at = 0;
      bool right = true;
      for (const nn::Batch& batch : here.in_order())
        for (const float value : batch.inputs.to_floats()) {
          const bool second = at % 2 == 1;
          const float factor =
                          static_cast<float>(static_cast<double>(data.scale) / (second ? 0.5 : 2)),
                      summand = second ? 2.0f : -0.125f;
          right = right && value == std::fma(from[at++], factor, summand);
        }
      CHECK(right);
      CHECK(at == from.size());
      std::vector<float> a, b;
      for (const nn::Batch& batch : here.in_order())
        for (const float value : batch.inputs.to_floats()) a.push_back(value);
      for (const nn::Batch& batch : there.in_order())
        for (const float value : batch.inputs.to_floats()) b.push_back(value);
      CHECK(same(a, b));
      CHECK(here.resident());
      CHECK(!there.resident());
    }
  }

  TEST_CASE("a loader gives what memory gives, plain samples too, epoch after epoch") {
    for (const bool floats : {false, true}) {
      const nn::Dataset data = small_set(64, 5, {4, 4, 1}, floats);
      Run here(kCpu, 3), there(kCpu, 3);
      nn::Batches a(here, data, data.train, 7), b(there, data, data.train, 7, {{}, {}, 0});
      for (int64_t epoch = 0; epoch < 5; ++epoch) {
        std::vector<int32_t> a_labels, b_labels;
        CHECK(same(epoch_of(a, epoch, &a_labels), epoch_of(b, epoch, &b_labels)));
        CHECK(a_labels == b_labels);
        CHECK(there.state().batch_offset == 63);
      }
      CHECK_THROWS_WITH_AS(b.next(), doctest::Contains("no further whole batch after 63"), Error);
      // Left in the middle, begun elsewhere, moved by hand.
      for (const int64_t begin : {0, 14, 56, 7, 0}) {
        a.shuffle(9, begin);
        b.shuffle(9, begin);
        CHECK(same_bits(a.next().inputs, b.next().inputs));
      }
      for (Run* run : {&here, &there}) {
        StepState state = run->state();
        state.batch_offset = 35;
        run->set_state(state);
      }
      for (int i = 0; i < 4; ++i) CHECK(same_bits(a.next().inputs, b.next().inputs));
    }
    // One that is made and never asked, and one that is left while it works.
    const nn::Dataset data = small_set(50, 5, {16, 16, 3});
    Run run;
    for (int i = 0; i < 20; ++i) {
      nn::Batches batches(run, data, data.train, 5, {{}, {}, 0});
      if (i % 2 == 1) batches.shuffle(i);
      if (i % 4 == 3) batches.next();
    }
  }

  TEST_CASE("means and deviations of channels") {
    nn::Dataset data = small_set(40, 5, {3, 4, 3});
    const nn::Normalisation n = nn::channel_statistics(data);
    const std::vector<float> values = data.train.images.to_floats();
    for (size_t c = 0; c < 3; ++c) {
      long double sum = 0, squares = 0, count = 0;
      for (size_t i = c; i < values.size(); i += 3) {
        sum += static_cast<long double>(values[i]);
        ++count;
      }
      for (size_t i = c; i < values.size(); i += 3)
        squares += std::pow(static_cast<long double>(values[i]) - sum / count, 2.0L);
      const auto scale = static_cast<double>(data.scale);
      CHECK(n.mean[c] == doctest::Approx(static_cast<double>(sum / count) * scale).epsilon(1e-14));
      CHECK(
          n.std[c] ==
          doctest::Approx(static_cast<double>(std::sqrt(squares / count)) * scale).epsilon(1e-14));
    }
    const nn::Dataset floats = small_set(40, 5, {3, 4, 1}, true);
    const nn::Normalisation f = nn::channel_statistics(floats);
    CHECK(std::abs(f.mean[0]) < 0.2);
    CHECK(f.std[0] == doctest::Approx(4 / std::sqrt(12.0)).epsilon(0.1));
    for (size_t i = 1; i < 40 * 3 * 4 * 3; i += 3)
      data.train.images.mutable_data<uint8_t>()[i] = 200;
    CHECK_THROWS_WITH_AS(nn::channel_statistics(data),
                         doctest::Contains("channel 1 has a standard deviation of 0"), Error);
    Run run;
    const auto refused = [&](const nn::Normalisation& wrong, const char* words) {
      CHECK_THROWS_WITH_AS(nn::Batches(run, data, data.train, 5, {wrong, {}}),
                           doctest::Contains(words), Error);
    };
    refused({{0.5}, {0.5}}, "1 means and 1 standard deviations for images of 3 channels");
    refused({{0, 0, 0}, {1, 0, 1}}, "deviation of channel 1 must lie in");
    refused({{0, 0, 0}, {1, 1, NAN}}, "deviation of channel 2 must lie in");
    refused({{0, INFINITY, 0}, {1, 1, 1}}, "mean of channel 1 must lie in -1e30 … 1e30, got inf");
  }

  TEST_CASE("the text of an augmentation") {
    using nn::parse_augmentation;
    CHECK(parse_augmentation("none") == Augmentation{});
    CHECK(parse_augmentation("crop:4,flip,cutout:8") == Augmentation{4, true, 8});
    CHECK(parse_augmentation("cutout:16") == Augmentation{0, false, 16});
    CHECK(parse_augmentation("flip,crop:1") == Augmentation{1, true, 0});
    for (const char* text : {"none", "crop:4", "flip", "cutout:8", "crop:4,flip,cutout:8"})
      CHECK(nn::to_string(parse_augmentation(text)) == text);
    CHECK(nn::to_string(parse_augmentation("cutout:2,crop:3")) == "crop:3,cutout:2");
    const auto refused = [](const char* text, const char* words) {
      CAPTURE(std::string(text));
      CHECK_THROWS_WITH_AS(parse_augmentation(text), doctest::Contains(words), Error);
    };
    for (const char* text : {"", "crop", "crop:", "flip:2", "rotate:3", "flip,", ",flip",
                             "crop:4 ,flip", "none,flip", "Flip"})
      refused(text, "augmentation '");
    refused("crop", "there are crop:PIXELS, flip and cutout:PIXELS");
    for (const char* text : {"crop:0", "crop:-1", "crop:x", "cutout:4097", "crop:99999999999"})
      refused(text, "no number of pixels from 1 to 4096");
    refused("flip,flip", "flip is given twice");
    refused("crop:2,crop:2", "crop is given twice");
    const nn::Dataset data = small_set(10, 5, {8, 6, 1});
    Run run;
    CHECK_THROWS_WITH_AS(nn::Batches(run, data, data.train, 5, {{}, {6, false, 0}}),
                         doctest::Contains("augmentation crop:6: images of 8 x 6 pixels"), Error);
    CHECK_THROWS_WITH_AS(nn::Batches(run, data, data.train, 5, {{}, {0, false, 7}}),
                         doctest::Contains("cutout of at most 6"), Error);
    nn::Batches(run, data, data.train, 5, {{}, {5, true, 6}});
  }

  TEST_CASE("arguments that do not fit are named") {
    AugmentRowsArgs good;
    good.in = bytes(4, {3, 3, 2}, 1);
    good.indices = numbers({0, 1, 2, 3});
    good.labels = numbers({0, 1, 2, 3});
    good.out = Tensor::empty({2, 18}, DType::F32, kCpu);
    good.out_labels = Tensor::empty({2}, DType::I32, kCpu);
    good.height = good.width = 3;
    good.channels = 2;
    kernels::augment_rows(kStream, good);
    const auto refused = [&](auto change, const char* words) {
      AugmentRowsArgs bad = good;
      change(bad);
      CHECK_THROWS_WITH_AS(kernels::augment_rows(kStream, bad), doctest::Contains(words), Error);
    };
    using Args = AugmentRowsArgs;
    refused([](Args& a) { a.height = 0; }, "sizes are at least 1");
    refused([](Args& a) { a.height = a.width = 65536; }, "below 2^31");
    refused([](Args& a) { a.width = 4; }, "images must be (R, 24)");
    refused([](Args& a) { a.how.crop = 3; }, "a crop of 3 is none for images of 3 x 3");
    refused([](Args& a) { a.how.cutout = 4; }, "a cutout of 4");
    refused([](Args& a) { a.in = {}; }, "images must be (R, 18)");
    refused(
        [](Args& a) {
          a.in = numbers(std::vector<int32_t>(36)).reshape({2, 18});
        },
        "U8 or F32");
    refused([](Args& a) { a.indices = numbers({1}); }, "1 indices for 2 rows");
    refused([](Args& a) { a.indices = {}; }, "must hold 2 images");
    refused([](Args& a) { a.out = Tensor::empty({2, 18}, DType::BF16, kCpu); }, "out must be F32");
    refused([](Args& a) { a.normal = Tensor::empty({2, 3}, DType::F32, kCpu); }, "(2, 2)");
    refused([](Args& a) { a.labels = numbers({1, 2}); }, "(4)");
  }
}
