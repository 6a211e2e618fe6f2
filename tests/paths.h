#pragma once

// Where the build has put what tests read and run. In one file of its own (tests/paths.cpp), so that a compiler cache serves
// the others in any folder.

namespace ulp::paths {

extern const char* const kTestData;  // tests/data
extern const char* const kCommand;   // the ulp command; where ULP_COMMAND is defined, else null

}  // namespace ulp::paths
