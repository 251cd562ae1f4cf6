// SPDX-License-Identifier: LGPL-2.1-or-later
//
// convert HOST PORT SOURCE TARGET.pdf: converts a document to PDF through an office's UNO port, with LibreOffice's C++
// library. The local component context belongs to the library; this process is not an office.
//
// The office loads SOURCE by its path. The PDF comes back over the connection, to a stream of the client. Each step
// writes a line of JSON, as in convert.py.

#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

#include <com/sun/star/beans/PropertyValue.hpp>
#include <com/sun/star/bridge/UnoUrlResolver.hpp>
#include <com/sun/star/frame/Desktop.hpp>
#include <com/sun/star/frame/XStorable.hpp>
#include <com/sun/star/io/XOutputStream.hpp>
#include <com/sun/star/lang/XServiceInfo.hpp>
#include <com/sun/star/util/XCloseable.hpp>
#include <cppuhelper/bootstrap.hxx>
#include <cppuhelper/implbase1.hxx>
#include <osl/file.hxx>
#include <osl/process.h>

using namespace com::sun::star;
using uno::Reference;

namespace
{
// Writes the bytes from the office to a file.
class FileOutput : public cppu::WeakImplHelper1<io::XOutputStream>
{
public:
    explicit FileOutput(const char* path)
        : file(path, std::ios::binary)
    {
    }

    void SAL_CALL writeBytes(const uno::Sequence<sal_Int8>& data) override
    {
        file.write(reinterpret_cast<const char*>(data.getConstArray()), data.getLength());
    }
    void SAL_CALL flush() override { file.flush(); }
    void SAL_CALL closeOutput() override { file.close(); }

private:
    std::ofstream file;
};

void step(const char* name) { std::cout << "{\"step\": \"" << name << "\"}" << std::endl; }

beans::PropertyValue property(const char* name, const uno::Any& value)
{
    return { rtl::OUString::createFromAscii(name), -1, value, beans::PropertyState_DIRECT_VALUE };
}

rtl::OUString url(const char* path)
{
    rtl::OUString directory;
    rtl::OUString relative;
    rtl::OUString absolute;
    osl_getProcessWorkingDir(&directory.pData);
    const rtl::OUString system = rtl::OUString(path, std::string(path).size(), RTL_TEXTENCODING_UTF8);
    osl::FileBase::getFileURLFromSystemPath(system, relative);
    osl::FileBase::getAbsoluteFileURL(directory, relative, absolute);
    return absolute;
}

Reference<uno::XComponentContext> connect(const std::string& host, const std::string& port)
{
    const Reference<uno::XComponentContext> local = cppu::defaultBootstrap_InitialComponentContext();
    const std::string address = "uno:socket,host=" + host + ",port=" + port + ";urp;StarOffice.ComponentContext";
    return { bridge::UnoUrlResolver::create(local)->resolve(rtl::OUString::createFromAscii(address.c_str())),
             uno::UNO_QUERY_THROW };
}

rtl::OUString filter(const Reference<uno::XInterface>& document)
{
    const Reference<lang::XServiceInfo> kind(document, uno::UNO_QUERY_THROW);
    if (kind->supportsService("com.sun.star.sheet.SpreadsheetDocument"))
        return "calc_pdf_Export";
    if (kind->supportsService("com.sun.star.presentation.PresentationDocument"))
        return "impress_pdf_Export";
    return "writer_pdf_Export";
}

void convert(const Reference<uno::XComponentContext>& context, const char* source, const char* target)
{
    const Reference<frame::XDesktop2> desktop = frame::Desktop::create(context);
    const beans::PropertyValue hidden = property("Hidden", uno::Any(true));
    step("loading");
    const Reference<lang::XComponent> document
        = desktop->loadComponentFromURL(url(source), "_blank", 0, { &hidden, 1 });
    if (!document.is())
        throw std::runtime_error(std::string("the office returned no document for ") + source);
    step("loaded");
    const Reference<io::XOutputStream> stream(new FileOutput(target));
    const beans::PropertyValue pdf[] = { property("FilterName", uno::Any(filter(document))),
                                         property("OutputStream", uno::Any(stream)) };
    Reference<frame::XStorable>(document, uno::UNO_QUERY_THROW)->storeToURL("private:stream", { pdf, 2 });
    step("stored");
    Reference<util::XCloseable>(document, uno::UNO_QUERY_THROW)->close(true);
    step("closed");
}
}

int main(int, char** arguments)
{
    try
    {
        const Reference<uno::XComponentContext> context = connect(arguments[1], arguments[2]);
        step("connected");
        convert(context, arguments[3], arguments[4]);
    }
    catch (const uno::Exception& error)
    {
        std::cerr << error.Message << std::endl;
        return 1;
    }
    catch (const std::exception& error)
    {
        std::cerr << error.what() << std::endl;
        return 1;
    }
    return 0;
}
