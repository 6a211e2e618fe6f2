# ulp_embed(target file symbol): compiles the file's bytes into the target as
#   extern const unsigned char symbol[]; extern const unsigned long symbol_size;
function(ulp_embed target file symbol)
  set_property(DIRECTORY APPEND PROPERTY CMAKE_CONFIGURE_DEPENDS ${file})
  file(READ ${file} hex HEX)
  string(LENGTH "${hex}" digits)
  math(EXPR size "${digits} / 2")
  string(REGEX REPLACE "([0-9a-f][0-9a-f])" "0x\\1," bytes "${hex}")
  string(REGEX REPLACE "(................................................................................)" "\\1\n" bytes "${bytes}")
  file(CONFIGURE OUTPUT ${CMAKE_CURRENT_BINARY_DIR}/${symbol}.cpp CONTENT
       "extern const unsigned char ${symbol}[];\nextern const unsigned long ${symbol}_size;\nconst unsigned char ${symbol}[] = {\n${bytes}};\nconst unsigned long ${symbol}_size = ${size};\n")
  target_sources(${target} PRIVATE ${CMAKE_CURRENT_BINARY_DIR}/${symbol}.cpp)
endfunction()
