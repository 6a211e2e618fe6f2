# Fails unless README contains PROGRAM, verbatim and whole, as one ```cpp block.
file(READ "${README}" readme)
file(READ "${PROGRAM}" program)
string(FIND "${readme}" "\n```cpp\n${program}```\n" at)
if(at EQUAL -1)
  message(FATAL_ERROR "${README} does not show ${PROGRAM} as it is; copy the file into its ```cpp block")
endif()
