#include "tests/paths.h"

namespace ulp::paths {

const char* const kTestData = ULP_TEST_DATA_PATH;
#if defined(ULP_COMMAND_PATH)
const char* const kCommand = ULP_COMMAND_PATH;
#else
const char* const kCommand = nullptr;
#endif

}  // namespace ulp::paths
