#include "nn/models/char_rnn.h"

#include "nn/embedding.h"
#include "nn/linear.h"

namespace ulp::nn {

std::unique_ptr<Sequential> char_rnn(RecurrentKind kind, int64_t vocabulary, int64_t width,
                                     const RecurrentOptions& options, const OpFormats& formats) {
  ops::RecurrentFormats parts;
  parts.input_product = parts.hidden_product = formats;
  auto net = std::make_unique<Sequential>();
  net->add<Embedding>("embedding", vocabulary, width);
  if (kind == RecurrentKind::Lstm)
    net->add<LSTM>("lstm", width, width, options, parts);
  else
    net->add<GRU>("gru", width, width, options, parts);
  net->add<Linear>("head", width, vocabulary, formats);
  return net;
}

}  // namespace ulp::nn
