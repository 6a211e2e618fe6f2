#pragma once

#include <zlib.h>

#include <cstdio>
#include <string>

namespace ulp::tests {

/// The bytes of a safetensors file with the checksum that they should have, if there is a place for one.
inline std::string with_checksum(std::string bytes) {
  const std::string place = "\"ulp_checksum\":\"";
  const size_t at = bytes.find(place);
  if (at == std::string::npos || at + place.size() + 8 > bytes.size()) return bytes;
  bytes.replace(at + place.size(), 8, 8, '0');
  const uLong sum = crc32_z(0, reinterpret_cast<const Bytef*>(bytes.data()), bytes.size());
  char digits[9];
  std::snprintf(digits, sizeof digits, "%08lx", sum);
  bytes.replace(at + place.size(), 8, digits);
  return bytes;
}

}  // namespace ulp::tests
