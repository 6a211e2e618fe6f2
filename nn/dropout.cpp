#include "nn/dropout.h"

namespace ulp::nn {

Dropout::Dropout(double p, OpFormats formats) : p_(p), formats_(std::move(formats)) {
  ULP_CHECK(p >= 0 && p < 1, "Dropout: the probability must be from 0 to below 1, got {}", p);
}

std::string Dropout::describe() const {
  std::string digits = std::to_string(p_);
  digits.erase(digits.find_last_not_of('0') + 1);
  return "Dropout " + (digits.back() == '.' ? digits + "0" : digits);
}

}  // namespace ulp::nn
